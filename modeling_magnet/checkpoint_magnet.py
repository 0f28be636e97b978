"""One directory, two lives: a MAGNET model with remote code, a stock decoder without it, an embedder beside both."""

import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from transformers.dynamic_module_utils import get_relative_import_files

from .adapters_magnet import HEAD_PREFIX, check_adapter_fits, load_head, write_head
from .configuration_magnet import MagnetSettings, resolve_mask_token
from .sources_magnet import (
    SOURCE_ARGUMENTS,
    CheckpointError,
    ModelSource,
    TokenizerSource,
    bases,
    check_tensors,
    tokenizer_place,
    wrap_read_errors,
)

try:  # what does not travel with a checkpoint: whole directories, model cards, merging, pushing, diagnosis
    from modeling_magnet import publishing
except ImportError:
    publishing = None  # type: ignore[assignment]

# How a class outside the package names what it builds on; in a checkpoint all files lie side by side.
_OUR_IMPORT = re.compile(r"^(from )modeling_magnet(?:\.(\w+_magnet))?( import)", flags=re.MULTILINE)


def write_code(kind: type, directory: Path) -> str | None:
    """Copy the files of a class, with everything they import from siblings, into a checkpoint.

    A class outside the package imports `MagnetMixin` by `from modeling_magnet import MagnetMixin`; in the copy that is
    a sibling's.

    Returns:
        `str`: module and class as `auto_map` names them; `None`, with a warning, for a class that is in no file.
    """
    module = sys.modules[kind.__module__]
    file = getattr(module, "__file__", None)
    if kind.__module__ == "__main__" or file is None:
        warnings.warn(
            f"The code of {kind.__name__} cannot be saved with its model: it was defined in the running program. "
            "Move it into a file of its own and import it; until then the checkpoint opens as a stock decoder.",
            stacklevel=2,
        )
        return None
    mixin = next(base for base in kind.__mro__ if base.__name__ == "MagnetMixin")
    ours = Path(str(sys.modules[mixin.__module__].__file__))
    text = Path(file).read_text(encoding="utf-8")
    siblings = _OUR_IMPORT.sub(lambda found: f"{found[1]}.{found[2] or ours.stem}{found[3]}", text)
    needed = {file, *get_relative_import_files(file)}
    if siblings != text:
        needed |= {str(ours), *get_relative_import_files(ours)}
    for name in needed:
        shutil.copy(name, directory)
    (directory / Path(file).name).write_text(siblings, encoding="utf-8")
    return f"{Path(file).stem}.{kind.__name__}"


# Arguments of transformers by which weights are not where they usually are.
_OTHER_WEIGHTS = ("gguf_file", "variant", "state_dict")
# Keys of config.json that may name a repository of compiled attention code, which transformers would run.
_ATTENTION = ("attn_implementation", "_attn_implementation")


def check_is_our_decoder(values: dict[str, Any], *, expected: str, path: str) -> None:
    """Refuse a checkpoint of another architecture before its weights are read."""
    if values.get("model_type") != expected:
        raise ValueError(
            f"{path!r} holds a model of type {values.get('model_type')!r}; this class adapts {expected!r}. "
            "Choose a decoder-only checkpoint of that type, or the MAGNET class of its family."
        )


def check_names_no_kernel(values: dict[str, Any], *, path: str) -> None:
    """Refuse a config that has attention computed by code of a repository: that is for the user to ask for."""
    for key in _ATTENTION:
        if "/" in json.dumps(values.get(key)):
            raise ValueError(
                f"config.json of {path!r} has {key!r} {values[key]!r:.80}, a repository whose code would be run. "
                "Remove it there; where you trust that code, pass `attn_implementation` yourself."
            )


class _Opened(NamedTuple):
    """What lies at a path, as far as it is known before any weight is read."""

    model: ModelSource  # the model, or the base of the adapter
    adapter: ModelSource | None
    settings: MagnetSettings
    is_ours: bool  # whether a checkpoint or an adapter of ours, with its settings, is there


def load_model(
    kind: Any, load: Callable[..., Any], path: Any, *model_args: Any, mask_token: str | None = None, **kwargs: Any
) -> Any:
    """Load a checkpoint of ours, a plain decoder or an adapter: see `MagnetMixin.from_pretrained`."""
    arguments = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
    given_adapter = _adapter_of_auto_class(kwargs.pop("adapter_kwargs", None))
    opened = _open(kind, ModelSource(str(path), arguments), given_adapter, config=kwargs.get("config"))
    source, adapter, settings = opened.model, opened.adapter, opened.settings
    kwargs = {name: value for name, value in kwargs.items() if name not in arguments} | source.arguments
    if publishing is not None and not any(kwargs.get(name) for name in _OTHER_WEIGHTS):
        publishing.check_weights(source)
    # Before the weights: a missing mask token must not cost the time of loading them.
    tokenizer_source = _find_tokenizer(opened, mask_token)
    wants_info = kwargs.pop("output_loading_info", False)
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    model, info = _read_weights(kind, load, source, *model_args, **kwargs)
    _check_report(source, info, may_differ=may_differ)
    model._tokenizer_source, model._weights_source = tokenizer_source, source
    model._stored_vocab_size = model.config.vocab_size
    if adapter is not None:
        of_base = ("force_download", "gguf_file")
        where = {name: value for name, value in adapter.arguments.items() if name not in of_base}
        model.load_adapter(adapter.path, adapter_kwargs=where)
    # An adapter that came with the weights has brought its own settings.
    MagnetSettings.update(model.config, mask_token=settings.mask_token, mask_token_id=settings.mask_token_id)
    model._card_source = (adapter or source) if opened.is_ours else None
    adapter_is_ours = adapter is not None and opened.is_ours
    if MagnetSettings.of(model.config).contrastive_head is not None and not adapter_is_ours:
        load_head(model, source)
    return (model, info) if wants_info else model


def _open(kind: Any, source: ModelSource, adapter: ModelSource | None, *, config: Any) -> _Opened:
    """Find the model and the adapter at a path, and refuse what cannot work without reading a weight."""
    if adapter is None:
        base = source.adapter_base()
        if base is not None:
            source, adapter = base, source
    values = source.config_values(config)
    check_is_our_decoder(values, expected=getattr(kind.config_class, "model_type", ""), path=source.path)
    check_names_no_kernel(values, path=source.path)
    settings = MagnetSettings.from_dict(values.get("magnet") or {}, source=str(source))
    if adapter is None:
        return _Opened(source, None, settings, is_ours=bool(values.get("magnet")))
    stored = adapter.adapter_settings()
    check_adapter_fits(adapter, stored, values)
    if publishing is not None:
        publishing.check_weights(adapter)
    if stored is not None:
        settings = MagnetSettings.from_dict(stored["magnet"], source=str(adapter))
    return _Opened(source, adapter, settings, is_ours=bool(stored))


def _find_tokenizer(opened: _Opened, mask_token: str | None) -> TokenizerSource:
    """Find the tokenizer, and look the mask token up in it where the settings do not have it."""
    place, settings = tokenizer_place(opened.model, opened.adapter), opened.settings
    source = TokenizerSource(place.path, place.arguments)
    tokenizer = source.find() if settings.mask_token_id is None or mask_token is not None else None
    if tokenizer is not None:
        settings.mask_token, settings.mask_token_id = resolve_mask_token(tokenizer, mask_token)
    elif mask_token is not None:
        raise ValueError(
            f"mask_token={mask_token!r} was given, but there is no tokenizer at {opened.model} to look it up in. Put "
            "the tokenizer's files there, or set `model.tokenizer` after loading."
        )
    return source


def _check_report(source: ModelSource, info: dict[str, Any], *, may_differ: bool) -> None:
    """Refuse tensors that do not fit or would be random; warn of those that the model has no place for."""
    mismatched = [] if may_differ else [name for name, *_ in info["mismatched_keys"]]
    check_tensors(source, mismatched=mismatched, missing=info["missing_keys"])
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(HEAD_PREFIX)]
    if unexpected:
        warnings.warn(
            f"The weights of {source} hold {sorted(unexpected)[:3]} ({len(unexpected)} tensors), for which the "
            "model has no place. If its config.json was changed, restore it.",
            stacklevel=4,
        )


def _read_weights(
    kind: Any, load: Callable[..., Any], source: ModelSource, *model_args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model that `load`, the parent's `from_pretrained`, loads, and what it reports of the tensors."""
    path, gguf = source.path, source.gguf()
    with wrap_read_errors(f"The model at {source}", arguments=tuple(kwargs)):
        if gguf is None:
            kwargs["use_safetensors"] = True
        else:
            path = str(gguf.parent)
            kept = {name: value for name, value in kwargs.items() if name not in SOURCE_ARGUMENTS}
            kwargs = bases.gguf.load_arguments(gguf, kind.config_class, kept)
        # Told to go on, transformers names the tensors that do not fit.
        model, info = load(path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    if gguf is not None:
        bases.gguf.forget_quantization(model)
    if path != source.name:  # what an adapter names as its base
        model.config._name_or_path = model.name_or_path = source.name
    return model, info


def _adapter_of_auto_class(arguments: dict[str, Any] | None) -> ModelSource | None:
    """Return the adapter that an Auto class found before it handed us the base."""
    arguments = dict(arguments or {})
    path = arguments.pop("_adapter_model_path", None)
    known = {name: arguments[name] for name in SOURCE_ARGUMENTS if arguments.get(name) is not None}
    return None if path is None else ModelSource(str(path), known)


# An attribute of a config that transformers leaves out of what it saves.
UNWRITTEN = "kwargs"


def save_model(
    model: Any,
    stock_save: Callable[..., None],
    save_directory: str | os.PathLike[str],
    *,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    merge_adapter: bool = False,
    dtype: torch.dtype | str | None = None,
    verify: bool | None = None,
    **kwargs: Any,
) -> None:
    """Save a checkpoint, or the adapter of a model that has one: see `MagnetMixin.save_pretrained`."""
    target = Path(save_directory)
    if target.is_file():
        raise ValueError(f"`save_directory` {str(target)!r} is a file; expected a directory. Choose another name.")
    adapter_alone = model.has_adapter and not merge_adapter
    adapter_dtype = None if dtype is None else _as_dtype(dtype)
    dtype = model.dtype if adapter_dtype is None or adapter_alone else adapter_dtype
    changes = merge_adapter or dtype != model.dtype
    if changes and publishing is None:
        raise ValueError("`merge_adapter` and another `dtype` need the package: install it, or leave them out.")
    if merge_adapter:
        publishing.check_can_merge(model, state_dict)

    def write(directory: Path) -> None:
        if adapter_alone and publishing is None:
            stock_save(model, directory, state_dict=state_dict, **kwargs)
        elif adapter_alone:
            publishing.write_adapter(model, directory, state_dict, adapter_dtype)
        else:
            host, weights = model, state_dict
            if changes:
                host, weights = publishing.changed_checkpoint(model, state_dict, dtype)
            _write_checkpoint(model, partial(stock_save, host), directory, weights, is_main_process, **kwargs)

    if not is_main_process:  # it may have to take part, where weights are spread over processes
        with tempfile.TemporaryDirectory() as scratch:
            if not adapter_alone:
                write(Path(scratch))
        return
    _check_tokenizer(model)
    if publishing is not None:
        publishing.check_not_packed(model)
    if publishing is None:
        write(target)
        return
    with publishing.written_aside(target) as finished:
        write(finished)
        publishing.complete(model, finished, target, adapter_alone=adapter_alone, by_library=is_saved_by_library())
        if changes if verify is None else verify:
            publishing.verify_files(model, finished, dtype=dtype)


def _check_tokenizer(model: Any) -> None:
    """Refuse to save without the tokenizer that there was when the model was loaded: its mask token is known."""
    source = model._tokenizer_source
    if source.path and MagnetSettings.of(model.config).mask_token_id is not None and source.find() is None:
        raise CheckpointError(
            f"The tokenizer at {source.path!r}, where the model came from, cannot be read any more. Nothing was "
            "saved. Restore it, or set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
        )


def _write_checkpoint(
    model: Any,
    stock_save: Callable[..., None],
    directory: Path,
    state_dict: dict[str, Any] | None,
    is_main_process: bool,
    **kwargs: Any,
) -> None:
    """Write weights, config, code, tokenizer and contrastive head."""
    weights = model.state_dict() if state_dict is None else state_dict
    main_weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD_PREFIX)}
    stock_save(directory, is_main_process=is_main_process, state_dict=main_weights, **kwargs)
    if not is_main_process:
        return
    _write_auto_map(model, directory)
    tokenizer = model._tokenizer_source.find()
    if tokenizer is not None:
        tokenizer.save_pretrained(str(directory))
    write_head(model, directory, weights)


def _write_auto_map(model: Any, directory: Path) -> None:
    """Write the code into a directory of stock weights, and name it in config.json beside the stock class."""
    ours = write_code(type(model), directory)
    config_file = directory / "config.json"
    values = json.loads(config_file.read_text(encoding="utf-8"))
    stock = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers.models."))
    values["architectures"] = [stock.__name__]
    values.pop("auto_map", None)
    values.pop("attribute_map", None)
    if ours is not None:
        values["auto_map"] = {"AutoModel": ours, "AutoModelForCausalLM": ours}
        # A stock class that opens this and saves it again does not write our code, so that it must not write this
        # key either: nobody could open the copy with `trust_remote_code=True`. Read under another name, one that
        # transformers never writes, it is only in the first file; the copy opens as a stock decoder.
        values["attribute_map"] = {**type(model.config).attribute_map, "auto_map": UNWRITTEN}
    # sentence-transformers drops its override of a key that the file does not have. Where it saves the model, no file
    # of its own says that the model is read bidirectionally.
    values["is_causal"] = True
    if model.default_mode == "bidirectional" and is_saved_by_library():
        values.update(MagnetSettings.of(model.config).encoder_config())
    values["magnet"]["adapter_modes"] = None  # of an adapter, which no whole checkpoint has
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_saved_by_library() -> bool:
    """Return whether sentence-transformers is saving a model that ours is a part of: only its callers tell."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        is_save = frame.f_code.co_name == "save"
        if is_save and str(frame.f_globals.get("__name__")).split(".")[0] == "sentence_transformers":
            return True
        frame = frame.f_back
    return False


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating-point dtype by torch's name for it."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"`dtype={dtype!r}` is not a floating-point dtype of torch; expected one such as torch.bfloat16."
        )
    return found
