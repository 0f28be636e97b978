"""The files beside a checkpoint from which sentence-transformers builds the same embedder as `model.encode`.

They name stock modules only, so that no remote code is needed. Keep them in step with `encoding_magnet`.
"""

import json
from pathlib import Path
from typing import Any

from .configuration_magnet import MagnetSettings
from .prompts_magnet import join_prompt

POOLING_FOLDER = "1_Pooling"
HEAD_FOLDER = "2_Dense"
HEAD_WEIGHTS = f"{HEAD_FOLDER}/model.safetensors"
# Our pooling by the library's name.
POOLING_MODES = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean"}


def sidecar_contents(
    *, hidden_size: int, settings: MagnetSettings, has_bos: bool, pad_token: str | None
) -> dict[str, Any]:
    """The JSON content of each sidecar by file name.

    Args:
        hidden_size (`int`): Width of the embeddings.
        settings (`MagnetSettings`): Gives the prompts and whether the contrastive head was kept.
        has_bos (`bool`): Whether the tokenizer has a BOS token to put in front.
        pad_token (`str`, *optional*): Padding token; without one the library cannot batch.
    """
    processor = {"add_bos_token": has_bos, "add_eos_token": True, "split_special_tokens": True}
    # The library puts a prompt in front as it is, and without one of these names its `encode_query` and
    # `encode_document` use none.
    default = "" if settings.default_prompt_name is None else settings.prompts[settings.default_prompt_name]
    named = {"query": default, "document": default, **settings.prompts}
    prompts = {name: join_prompt(named[name], "") for name in sorted(named)}  # as config.json sorts them
    modules = [
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        (POOLING_FOLDER, "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ]
    contents: dict[str, Any] = {
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            # The library reads this over config.json's own value, which stays true for every other reader.
            "config_kwargs": {"is_causal": False},
            "processor_kwargs": processor if pad_token is None else {**processor, "pad_token": pad_token},
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        f"{POOLING_FOLDER}/config.json": {
            "embedding_dimension": hidden_size,
            "pooling_mode": POOLING_MODES[settings.pooling],
            "include_prompt": False,
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity_fn_name,
        },
    }
    if settings.contrastive_head is not None:
        modules.append((HEAD_FOLDER, "sentence_transformers.base.modules.dense.Dense"))
        contents[f"{HEAD_FOLDER}/config.json"] = {
            "in_features": hidden_size,
            "out_features": hidden_size,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
    contents["modules.json"] = [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
    ]
    return contents


# sentence-transformers takes an adapter's config from its base and drops an override of what that does not have: over
# a plain decoder the vectors would silently be causal. This module cannot be imported; its name is the message.
REFUSAL = "merge_this_adapter_first.save_pretrained_with_merge_adapter"


def refusing_contents() -> dict[str, Any]:
    """The sidecars of an adapter that sentence-transformers cannot open rightly: one that says so."""
    return {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": REFUSAL}]}


def write_sidecars(directory: Path, contents: dict[str, Any]) -> None:
    """Write each content as indented JSON below the directory."""
    for name, content in contents.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["HEAD_WEIGHTS", "refusing_contents", "sidecar_contents", "write_sidecars"]
