"""Wrap a MAGNET model for `mteb.evaluate`, with the paper's instructions and a record of the conditions.

This needs the `eval` extra, so `trainer` does not import it.
"""

import hashlib
import inspect
from typing import Any

import numpy as np
import torch
import transformers
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from modeling_magnet.tokenization_magnet import PAPER_PROMPTS

_SCORING = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
# Options of `mteb.evaluate(encode_kwargs=)` that do not change the vectors, and the precision, which MTEB records.
_OF_EVALUATE = ("batch_size", "batch_tokens", "precision", "show_progress_bar")
# MTEB's own default, which would cap the budget of tokens.
_MTEB_BATCH_SIZE = 32
# Options of `encode` that the task or MTEB decides.
_OF_THE_TASK = {
    "inputs", "sentences", "prompt", "prompt_name", "output_value", "convert_to_numpy", "convert_to_tensor"
}  # fmt: skip


class MagnetEncoder(AbsEncoder):
    """Wrap a model for MTEB, as `mteb.evaluate(MagnetEncoder(model), tasks)`.

    The instruction of a task is the first that exists of the model's prompts under the task's name, its type
    (`"STS"`), `query` or `document`; the paper's prompts under these keys; and the model's default prompt.

    Args:
        model (`PreTrainedModel`): With `encode` and `tokenizer`.
        name (`str`, *optional*): `owner/name` in the result files; by default from where the model was loaded.
        revision (`str`, *optional*): Commit of the model; by default that of the load, or `local`, with a digest of
            the weights: MTEB caches scores by name and revision, so wrap a model again after training it.
        encode_kwargs: Passed to `encode`, such as `pooling` or `normalize_embeddings`.

    Raises:
        ValueError: for options that `encode` does not have or cannot use, or that belong to the task, such as
            `prompt`.
    """

    def __init__(
        self, model: Any, *, name: str | None = None, revision: str | None = None, **encode_kwargs: Any
    ) -> None:
        _check_options(model, encode_kwargs)
        self.model = model
        self.encode_kwargs = encode_kwargs
        settings = model.magnet_settings
        self.prompts = {**PAPER_PROMPTS, **settings.prompts}
        self.default_prompt = self.prompts.get(settings.default_prompt_name or "", "")
        self.model_prompts = self.prompts
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name or _name_of(model),
                "revision": revision or _revision_of(model),
                # MTEB does not know the other functions; it then asks the model.
                "similarity_fn_name": _SCORING.get(settings.similarity_fn_name),
                "embed_dim": model.config.hidden_size,
                "max_tokens": model.config.max_position_embeddings,
                "framework": ["PyTorch"],
                "use_instructions": True,
                # The conditions under which vectors are made, for every result file.
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
        """Return the instruction before the texts of a task."""
        name = self.get_prompt_name(task_metadata, prompt_type)
        return self.default_prompt if name is None else self.prompts[name]

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
        """Embed the texts of a task.

        Args:
            inputs (`DataLoader`): Batches with a column `text`.
            task_metadata (`TaskMetadata`): Chooses the instruction.
            prompt_type (`PromptType`, *optional*): Query or document.
            kwargs: From `mteb.evaluate(encode_kwargs=)`, passed to `encode`, except MTEB's default batch size of 32,
                and MTEB's `hf_split` and `hf_subset`, which are not used.

        Returns:
            `numpy.ndarray` of shape `(num_texts, embed_dim)`, in float32.

        Raises:
            ValueError: for options that change the vectors and that MTEB would not record.
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


def _check_options(model: Any, options: dict[str, Any]) -> None:
    """Raise for options that `encode` does not have, that the task decides, or that are out of range."""
    if of_the_task := sorted(_OF_THE_TASK & set(options)):
        raise ValueError(
            f"{', '.join(map(repr, of_the_task))} cannot be chosen for all tasks. Store an instruction under the "
            'task\'s name or type: model.prompts["STS"] = "..."'
        )
    known = [name for name in inspect.signature(model.encode).parameters if name not in _OF_THE_TASK]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"`encode` has no option {', '.join(map(repr, unknown))}; expected some of {known}.")
    model.encode([], **{name: value for name, value in options.items() if name != "precision"})


def _revision_of(model: Any) -> str:
    """Return the commit of the load, if it is known, and a digest of all weights in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{getattr(model.config, '_commit_hash', None) or 'local'}-{digest.hexdigest()[:16]}"


def _name_of(model: Any) -> str:
    """Return `owner/name` from the last two parts of the path that a model was loaded from."""
    parts = str(model.config._name_or_path).replace("\\", "/").split("/")
    named = [part for part in parts if part not in ("", ".", "..")]
    return "/".join(["local", *(named or ["magnet"])][-2:])
