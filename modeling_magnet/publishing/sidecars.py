"""What a saved directory has beside weights, code and tokenizer: sentence-transformers' files, and the model card."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from ..configuration_magnet import MagnetSettings
from ..sources_magnet import CONFIG, CheckpointError, ModelSource
from ..tokenization_magnet import join_prompt
from .card import write_card_beside

POOLING_FOLDER = "1_Pooling"
HEAD_FOLDER = "2_Dense"
LIBRARY_CONFIG = "config_sentence_transformers.json"
# What the library reads at the top of a directory, and writes there itself when it saves.
TOP_FILES = (LIBRARY_CONFIG, "modules.json", "sentence_bert_config.json")
# Our pooling by the library's name.
POOLING_MODES = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean"}


def sidecar_contents(
    *, hidden_size: int, settings: MagnetSettings, has_bos: bool, pad_token: str | None
) -> dict[str, Any]:
    """Return the JSON content of each sidecar by file name."""
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
            "config_kwargs": settings.encoder_config(),
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
    """Return sidecars that say why sentence-transformers cannot open an adapter correctly."""
    return {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": REFUSAL}]}


def complete(model: Any, finished: Path, target: Path, *, adapter_alone: bool, by_library: bool) -> None:
    """Write the sidecars and the card of a checkpoint or an adapter that is being saved.

    Args:
        model: The model that is saved.
        finished (`Path`): Where its files were written.
        target (`Path`): Where they will be.
        adapter_alone (`bool`): Whether they are an adapter's.
        by_library (`bool`): Whether sentence-transformers saves the model: it writes card and sidecars itself, before
            and after our save, with what its user has set.
    """
    if by_library:
        _keep_library_files(finished, target)
        return
    if adapter_alone and not _opens_as_embedder(model, finished):
        contents = refusing_contents()
    else:
        tokenizer = model._tokenizer_source.find()
        contents = sidecar_contents(
            hidden_size=model.config.hidden_size,
            settings=model.magnet_settings,
            has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
            pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
        )
    for name, content in contents.items():
        file = finished / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card_beside(model, finished, target.resolve(), adapter_alone=adapter_alone)


def _opens_as_embedder(model: Any, directory: Path) -> bool:
    """Return whether sentence-transformers can open an adapter correctly.

    It would have the adapter always on, and takes the config of the base, which has to be one of our checkpoints to
    be read bidirectionally.
    """
    modes = model.magnet_settings.adapter_modes
    if modes is not None and "bidirectional" not in modes:
        return False
    try:
        base = ModelSource(str(directory), {}).adapter_base()
    except CheckpointError:
        return False
    return base is not None and "is_causal" in base.config_values()


def _keep_library_files(finished: Path, target: Path) -> None:
    """Copy what sentence-transformers has written, and take the prompts and the similarity of its user over."""
    for name in TOP_FILES:
        if (target / name).is_file():
            shutil.copy(target / name, finished)
    if (finished / CONFIG).is_file() and (target / LIBRARY_CONFIG).is_file():
        values = json.loads((finished / CONFIG).read_text(encoding="utf-8"))
        chosen = json.loads((target / LIBRARY_CONFIG).read_text(encoding="utf-8"))
        values["magnet"] = _with_choices(values["magnet"], chosen)
        (finished / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_choices(magnet: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return our settings with what the library's user has chosen, as far as `encode` knows it."""
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
