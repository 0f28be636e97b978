"""The files beside a checkpoint from which sentence-transformers builds the same embedder as `model.encode`.

They name stock modules only, so that no remote code is needed. Keep them in step with `encoding_magnet`.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from .configuration_magnet import MagnetSettings
from .prompts_magnet import join_prompt
from .sources_magnet import CONFIG

POOLING_FOLDER = "1_Pooling"
HEAD_FOLDER = "2_Dense"
HEAD_WEIGHTS = f"{HEAD_FOLDER}/model.safetensors"
LIBRARY = "sentence_transformers"
LIBRARY_CONFIG = "config_sentence_transformers.json"
# What the library reads at the top of a directory, and writes there itself when it saves.
TOP_FILES = (LIBRARY_CONFIG, "modules.json", "sentence_bert_config.json")
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
            # The library reads these over config.json's own values, which stay a causal decoder's for other readers.
            "config_kwargs": _encoder_config(settings),
            "processor_kwargs": processor if pad_token is None else {**processor, "pad_token": pad_token},
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        f"{POOLING_FOLDER}/config.json": {
            "embedding_dimension": hidden_size,
            "pooling_mode": POOLING_MODES[settings.pooling],
            "include_prompt": False,
        },
        LIBRARY_CONFIG: {
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


def is_saved_by_library() -> bool:
    """Whether sentence-transformers is saving a model of its own, of which ours is a part.

    It tells nothing of that to what it saves, so that the callers have to be looked at.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "save" and str(frame.f_globals.get("__name__")).split(".")[0] == LIBRARY:
            return True
        frame = frame.f_back
    return False


def leave_to_library(finished: Path, target: Path, *, opened_as_encoder: bool) -> None:
    """Put the library's own files in the place of our sidecars: it writes them before and after our save.

    Args:
        finished (`Path`): What we saved and is to be moved into the target. Its settings get the prompts and the
            similarity that the library's user has set, so that `encode` gives the same vectors.
        target (`Path`): The directory that the library saves to.
        opened_as_encoder (`bool`): Whether the library reads this model bidirectionally. Its own files do not say so:
            as for a stock decoder, config.json has to.
    """
    for name in (*TOP_FILES, f"{POOLING_FOLDER}/config.json", f"{HEAD_FOLDER}/config.json"):
        (finished / name).unlink(missing_ok=True)
    if (finished / POOLING_FOLDER).is_dir():
        (finished / POOLING_FOLDER).rmdir()
    for name in TOP_FILES:
        if (target / name).is_file():
            shutil.copy(target / name, finished)
    config = finished / CONFIG
    if not config.is_file():  # an adapter alone
        return
    values = json.loads(config.read_text(encoding="utf-8"))
    if (target / LIBRARY_CONFIG).is_file():
        chosen = json.loads((target / LIBRARY_CONFIG).read_text(encoding="utf-8"))
        values["magnet"] = _with_choices(values["magnet"], chosen)
    if opened_as_encoder:
        values.update(_encoder_config(MagnetSettings.from_dict(values["magnet"])))
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_choices(magnet: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Our settings with what the library's user has chosen, as far as `encode` knows it."""
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    try:
        settings = MagnetSettings.from_dict(magnet | {name: chosen[name] for name in names if name in chosen})
    except ValueError as error:
        warnings.warn(f"`encode` keeps the prompts and the similarity that it had: {error}", stacklevel=2)
        return magnet
    spaced = sorted(name for name, prompt in settings.prompts.items() if join_prompt(prompt, "") != prompt)
    if spaced:
        warnings.warn(
            f"The prompts {spaced} do not end in a space. sentence-transformers puts them right in front of a text, "
            "`encode` puts a space between. Give them one for equal vectors.",
            stacklevel=2,
        )
    return settings.to_dict()


def _encoder_config(settings: MagnetSettings) -> dict[str, Any]:
    """What makes stock classes read a checkpoint of ours bidirectionally, in place of config.json's own values."""
    config: dict[str, Any] = {"is_causal": False}
    if settings.bidirectional_window is not None:
        config["sliding_window"] = settings.bidirectional_window
    return config


__all__ = [
    "HEAD_WEIGHTS",
    "is_saved_by_library",
    "leave_to_library",
    "refusing_contents",
    "sidecar_contents",
    "write_sidecars",
]
