"""Write the files of sentence-transformers and the model card beside a saved checkpoint."""

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
# The files of sentence-transformers at the top of a directory, which it writes itself when it saves a model.
TOP_FILES = (LIBRARY_CONFIG, "modules.json", "sentence_bert_config.json")
# The names of our poolings in sentence-transformers.
POOLING_MODES = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean"}


def sidecar_contents(
    *, hidden_size: int, settings: MagnetSettings, has_bos: bool, pad_token: str | None
) -> dict[str, Any]:
    """Return the JSON content of each sidecar by file name."""
    processor = {"add_bos_token": has_bos, "add_eos_token": True, "split_special_tokens": True}
    # `encode_query` and `encode_document` of sentence-transformers look up these names, and use no prompt otherwise.
    default = "" if settings.default_prompt_name is None else settings.prompts[settings.default_prompt_name]
    named = {"query": default, "document": default, **settings.prompts}
    # sentence-transformers prepends a prompt without a separator, so add it here. Sorted as in config.json.
    prompts = {name: join_prompt(named[name], "") for name in sorted(named)}
    modules = [
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        (POOLING_FOLDER, "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ]
    contents: dict[str, Any] = {
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            # Overrides for sentence-transformers; in config.json the values stay those of a causal decoder.
            "config_kwargs": settings.encoder_config(),
            "processor_kwargs": processor if pad_token is None else {**processor, "pad_token": pad_token},
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        f"{POOLING_FOLDER}/config.json": {
            "embedding_dimension": hidden_size,
            "pooling_mode": POOLING_MODES[settings.pooling],
            "include_prompt": False,  # as in `encode`: a mean excludes the prompt
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


# sentence-transformers applies `config_kwargs` only to keys of the base's config. On a plain decoder, an adapter would
# silently give causal vectors. This module cannot be imported, and the error shows its name.
REFUSAL = "merge_this_adapter_first.save_pretrained_with_merge_adapter"


def refusing_contents() -> dict[str, Any]:
    """Return sidecars that make sentence-transformers refuse an adapter with an explanation."""
    return {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": REFUSAL}]}


def write_sidecars_and_card(model: Any, finished: Path, target: Path, *, adapter_only: bool, by_library: bool) -> None:
    """Write the sidecars and the card into the directory `finished`, which is going to replace `target`."""
    # If sentence-transformers saves the model, it writes the sidecars and the card itself, partly before our save.
    if by_library:
        _keep_library_files(finished, target)
        return
    if adapter_only and not _opens_as_embedder(model, finished):
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
    write_card_beside(model, finished, target.resolve(), adapter_only=adapter_only)


def _opens_as_embedder(model: Any, directory: Path) -> bool:
    """Return whether an adapter gives correct embeddings in sentence-transformers.

    There, the adapter is always on, and attention is bidirectional only if the base is a MAGNET checkpoint.
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
    """Copy the files that sentence-transformers has written, and adopt their prompts and similarity function."""
    for name in TOP_FILES:
        if (target / name).is_file():
            shutil.copy(target / name, finished)
    if (finished / CONFIG).is_file() and (target / LIBRARY_CONFIG).is_file():
        values = json.loads((finished / CONFIG).read_text(encoding="utf-8"))
        chosen = json.loads((target / LIBRARY_CONFIG).read_text(encoding="utf-8"))
        _adopt_choices(values, chosen)
        (finished / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adopt_choices(values: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Adopt the values of sentence-transformers' config in those of config.json, unless they are invalid here."""
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    try:
        MagnetSettings.update_config(values, **{name: chosen[name] for name in names if name in chosen})
    except ValueError as error:
        warnings.warn(f"The prompts and the similarity of `encode` stay unchanged: {error}", stacklevel=2)
        return
    prompts = chosen.get("prompts") or {}
    spaced = sorted(name for name, prompt in prompts.items() if join_prompt(prompt, "") != prompt)
    if spaced:
        warnings.warn(
            f"The prompts {spaced} do not end in a space, which `encode` inserts before the text and "
            "sentence-transformers does not. Append a space to them to get equal vectors.",
            stacklevel=2,
        )
