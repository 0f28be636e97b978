"""Wrap a MAGNET model for `mteb.evaluate`, with the paper's instructions.

`trainer` does not import this module, which requires the `eval` extra.
"""

import hashlib
from typing import Any

import numpy as np
import torch
import transformers
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from modeling_magnet.configuration_magnet import PAPER_PROMPTS

_SCORING = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
# Options of `mteb.evaluate(encode_kwargs=)` that do not change embeddings, and the precision, which MTEB records.
_OF_EVALUATE = ("batch_size", "batch_tokens", "precision", "show_progress_bar")
# Default of MTEB; it is dropped, since it would limit batches more than the token budget of `encode`.
_MTEB_BATCH_SIZE = 32


class MagnetEncoder(AbsEncoder):
    """Wrap a model for MTEB, as `mteb.evaluate(MagnetEncoder(model), tasks)`.

    The instruction of a task is the first prompt that exists under the task's name, its type (`"STS"`), or `query` or
    `document`, where the model's prompts override the paper's; otherwise the model's default prompt.

    Args:
        model (`PreTrainedModel`): With `encode` and `tokenizer`.
        name (`str`, *optional*): `owner/name` in the result files; by default from the path of the model.
        revision (`str`, *optional*): Commit of the model; by default the loaded one, or `local`, with a digest of the
            weights. MTEB caches scores by name and revision, so wrap a model again after training it.
        encode_kwargs: Passed to `encode`, such as `pooling` or `normalize_embeddings`.
    """

    def __init__(
        self, model: Any, *, name: str | None = None, revision: str | None = None, **encode_kwargs: Any
    ) -> None:
        self.model = model
        self.encode_kwargs = encode_kwargs
        settings = model.magnet_settings
        self.prompts = {**PAPER_PROMPTS, **settings.prompts}
        self.default_prompt = self.prompts.get(settings.default_prompt_name or "", "")
        self.model_prompts = self.prompts  # the name that MTEB's `get_prompt_name` reads
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name or _name_of(model),
                "revision": revision or _revision_of(model),
                # MTEB does not have the other functions; for `None` it asks the model.
                "similarity_fn_name": _SCORING.get(settings.similarity_fn_name),
                "embed_dim": model.config.hidden_size,
                "max_tokens": model.config.max_position_embeddings,
                "framework": ["PyTorch"],
                "use_instructions": True,
                # Recorded in every result file.
                "experiment_kwargs": {
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "attn_implementation": model.config._attn_implementation,
                    "pooling": settings.pooling,
                    "prompts": self.prompts,
                    "default_prompt": self.default_prompt,
                    "transformers": transformers.__version__,
                    "torch": torch.__version__,
                    **encode_kwargs,
                },
            }
        )

    def prompt_of(self, task_metadata: Any, prompt_type: Any = None) -> str:
        """Return the prompt of the texts of a task."""
        name = self.get_prompt_name(task_metadata, prompt_type)
        return self.default_prompt if name is None else self.prompts[name]

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
        """Embed the texts of a task.

        Args:
            inputs (`DataLoader`): Batches with a column `text`.
            task_metadata (`TaskMetadata`): Selects the prompt.
            prompt_type (`PromptType`, *optional*): Query or document.
            kwargs: From `mteb.evaluate(encode_kwargs=)`, passed to `encode`, except `hf_split`, `hf_subset` and MTEB's
                default batch size of 32.

        Returns:
            `numpy.ndarray` of shape `(num_texts, embed_dim)`, in float32.

        Raises:
            ValueError: If an option changes embeddings, but MTEB does not record it.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in ("hf_split", "hf_subset")}
        unrecorded = sorted(set(kwargs) - set(_OF_EVALUATE))
        if unrecorded:
            raise ValueError(
                f"`encode_kwargs` has {', '.join(map(repr, unrecorded))}, which MTEB does not record; expected "
                f"{', '.join(_OF_EVALUATE)}. Pass the others to the constructor: MagnetEncoder(model, pooling=...)."
            )
        if kwargs.get("batch_size") == _MTEB_BATCH_SIZE:
            del kwargs["batch_size"]
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.prompt_of(task_metadata, prompt_type)
        vectors: np.ndarray = self.model.encode(texts, prompt=prompt, **{**self.encode_kwargs, **kwargs})
        return vectors


def _revision_of(model: Any) -> str:
    """Return the loaded commit, or `local`, and a digest of all weights in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{getattr(model.config, '_commit_hash', None) or 'local'}-{digest.hexdigest()[:16]}"


def _name_of(model: Any) -> str:
    """Return `owner/name` from the last two parts of the path that a model was loaded from."""
    parts = str(model.config._name_or_path).replace("\\", "/").split("/")
    names = [part for part in parts if part not in ("", ".", "..")]
    return "/".join(["local", *(names or ["magnet"])][-2:])
