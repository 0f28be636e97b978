"""Save and load checkpoints that open as MAGNET, as a stock decoder, and in sentence-transformers."""

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

from .adapters_magnet import check_adapter_fits
from .configuration_magnet import MagnetSettings
from .pooling_magnet import HEAD_PREFIX, load_head, write_head
from .sources_magnet import (
    SOURCE_ARGUMENTS,
    CheckpointError,
    ModelSource,
    TokenizerSource,
    bases,
    check_tensors,
    tokenizer_source_of,
    wrap_read_errors,
)
from .tokenization_magnet import resolve_mask_token

try:  # the remote code of a checkpoint comes without it, and then saves and loads as transformers does
    from modeling_magnet import publishing
except ImportError:
    publishing = None  # type: ignore[assignment]

# The imports of this package by a class outside of it. In a checkpoint, all modules are siblings.
_OUR_IMPORT = re.compile(r"^(from )modeling_magnet(?:\.(\w+_magnet))?( import)", flags=re.MULTILINE)


def write_code(family: type, directory: Path) -> str | None:
    """Copy the module of a class, and the modules that it imports relatively, into a checkpoint.

    In the copy of a class outside the package, imports from `modeling_magnet` become relative.

    Returns:
        `str`: module and class, as in `auto_map`; `None`, with a warning, if the class is not defined in a file.
    """
    module = sys.modules[family.__module__]
    file = getattr(module, "__file__", None)
    if family.__module__ == "__main__" or file is None:
        warnings.warn(
            f"The code of {family.__name__} cannot be saved with its model, because it is defined in the main "
            "program. Move the class to a module and import it; until then the checkpoint opens as a stock decoder.",
            stacklevel=2,
        )
        return None
    mixin = next(base for base in family.__mro__ if base.__name__ == "MagnetMixin")
    ours = Path(str(sys.modules[mixin.__module__].__file__))
    text = Path(file).read_text(encoding="utf-8")
    relative = _OUR_IMPORT.sub(lambda match: f"{match[1]}.{match[2] or ours.stem}{match[3]}", text)
    needed = {file, *get_relative_import_files(file)}
    if relative != text:
        needed |= {str(ours), *get_relative_import_files(ours)}
    for name in needed:
        shutil.copy(name, directory)
    (directory / Path(file).name).write_text(relative, encoding="utf-8")
    return f"{Path(file).stem}.{family.__name__}"


# Arguments of `from_pretrained` that take the weights from elsewhere than model.safetensors.
_OTHER_WEIGHTS = ("gguf_file", "variant", "state_dict")
# Keys of config.json that may name a repository of compiled attention code, which transformers would run.
_ATTENTION = ("attn_implementation", "_attn_implementation")


def check_is_our_decoder(values: dict[str, Any], *, expected: str, path: str) -> None:
    """Raise a `ValueError` if a config.json is of another architecture."""
    if values.get("model_type") != expected:
        raise ValueError(
            f"{path!r} contains a model of type {values.get('model_type')!r}; this class expects {expected!r}. "
            "Choose a checkpoint of that type, or load this one with `AutoMagnetForCausalLM`."
        )


def check_names_no_kernel(values: dict[str, Any], *, path: str) -> None:
    """Refuse a config.json that requests an attention kernel from the Hub; only the user may opt in to that."""
    for key in _ATTENTION:
        if "/" in json.dumps(values.get(key)):
            raise ValueError(
                f"config.json of {path!r} has {key!r} {values[key]!r:.80}, a repository whose code would be run. "
                "Remove the key, or pass `attn_implementation` yourself if you trust that code."
            )


class _Opened(NamedTuple):
    """The sources and the settings of a load, found without reading any weights."""

    model: ModelSource  # the model, or the base of the adapter
    adapter: ModelSource | None
    settings: MagnetSettings
    is_ours: bool  # whether the checkpoint, or the adapter if there is one, has MAGNET settings


def load_model(
    family: Any, load: Callable[..., Any], path: Any, *model_args: Any, mask_token: str | None = None, **kwargs: Any
) -> Any:
    """Implement `MagnetMixin.from_pretrained`; `load` is the method of the parent class."""
    arguments = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
    adapter = _adapter_of_auto_class(kwargs.pop("adapter_kwargs", None))
    opened = _open(family, ModelSource(str(path), arguments), adapter, config=kwargs.get("config"))
    source, adapter = opened.model, opened.adapter
    kwargs = {name: value for name, value in kwargs.items() if name not in arguments} | source.arguments
    if publishing is not None and not any(kwargs.get(name) for name in _OTHER_WEIGHTS):
        publishing.check_weights(source)
    # Find the tokenizer before loading the weights, so that a missing mask token fails fast.
    tokenizer_source, mask = _find_tokenizer(opened, mask_token)
    wants_info = kwargs.pop("output_loading_info", False)
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    model, info = _read_weights(family, load, source, *model_args, **kwargs)
    _check_report(source, info, may_differ=may_differ)
    model._tokenizer_source, model._weights_source = tokenizer_source, source
    model._stored_vocab_size = model.config.vocab_size
    if adapter is not None:
        of_base = ("force_download", "gguf_file")  # these apply only to the base
        adapter_kwargs = {name: value for name, value in adapter.arguments.items() if name not in of_base}
        model.load_adapter(adapter.path, adapter_kwargs=adapter_kwargs)
    if mask is not None:  # last, because `load_adapter` replaces the settings
        MagnetSettings.update_config(model.config, mask_token=mask[0], mask_token_id=mask[1])
    model._card_source = (adapter or source) if opened.is_ours else None
    adapter_is_ours = adapter is not None and opened.is_ours
    if MagnetSettings.from_config(model.config).contrastive_head is not None and not adapter_is_ours:
        load_head(model, source)
    return (model, info) if wants_info else model


def _open(family: Any, source: ModelSource, adapter: ModelSource | None, *, config: Any) -> _Opened:
    """Find the model and the adapter of a source, and check all that can be checked without reading weights."""
    if adapter is None:
        base = source.adapter_base()
        if base is not None:
            source, adapter = base, source
    values = source.config_values(config)
    check_is_our_decoder(values, expected=getattr(family.config_class, "model_type", ""), path=source.path)
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


def _find_tokenizer(opened: _Opened, mask_token: str | None) -> tuple[TokenizerSource, tuple[str, int] | None]:
    """Return the source of the tokenizer, and the mask token with its id if the settings need one."""
    location = tokenizer_source_of(opened.model, opened.adapter)
    source = TokenizerSource(location.path, location.arguments)
    needs_mask = opened.settings.mask_token_id is None or mask_token is not None
    tokenizer = source.find() if needs_mask else None
    if tokenizer is not None:
        return source, resolve_mask_token(tokenizer, mask_token)
    if mask_token is not None:
        raise ValueError(
            f"mask_token={mask_token!r} was passed, but {opened.model} has no tokenizer to look it up in. Add the "
            "tokenizer's files, or set `model.tokenizer` after loading."
        )
    return source, None


def _check_report(source: ModelSource, info: dict[str, Any], *, may_differ: bool) -> None:
    """Raise an error for tensors of the wrong shape or missing ones; warn of unexpected ones."""
    mismatched = [] if may_differ else [name for name, *_ in info["mismatched_keys"]]
    check_tensors(source, mismatched=mismatched, missing=info["missing_keys"])
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(HEAD_PREFIX)]
    if unexpected:
        warnings.warn(
            f"The weights of {source} contain {len(unexpected)} tensors that the model does not use, such as "
            f"{sorted(unexpected)[:3]}. If its config.json was edited, restore it.",
            stacklevel=4,
        )


def _read_weights(
    family: Any, load: Callable[..., Any], source: ModelSource, *model_args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model that `load` loads, and its report on missing, unexpected and mismatched tensors."""
    path, gguf = source.path, source.gguf()
    with wrap_read_errors(f"The model at {source}", arguments=tuple(kwargs)):
        if gguf is None:
            kwargs["use_safetensors"] = True
        else:
            path = str(gguf.parent)
            others = {name: value for name, value in kwargs.items() if name not in SOURCE_ARGUMENTS}
            kwargs = bases.gguf.load_arguments(gguf, family.config_class, others)
        # With `ignore_mismatched_sizes`, transformers reports all such tensors, and `_check_report` raises the error.
        model, info = load(path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    if gguf is not None:
        bases.gguf.forget_quantization(model)
    if path != source.name:  # adapters store this name as that of their base
        model.config._name_or_path = model.name_or_path = source.name
    return model, info


def _adapter_of_auto_class(arguments: dict[str, Any] | None) -> ModelSource | None:
    """Return the adapter in the `adapter_kwargs` of an Auto class, which resolves adapters to their bases."""
    arguments = dict(arguments or {})
    path = arguments.pop("_adapter_model_path", None)
    known = {name: arguments[name] for name in SOURCE_ARGUMENTS if arguments.get(name) is not None}
    return None if path is None else ModelSource(str(path), known)


# An attribute that `PreTrainedConfig` never writes to config.json.
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
    """Implement `MagnetMixin.save_pretrained`; `stock_save` is the unbound method of the parent class."""
    target = Path(save_directory)
    if target.is_file():
        raise ValueError(f"`save_directory` {str(target)!r} is a file; expected a directory. Choose another name.")
    adapter_only = model.has_adapter and not merge_adapter
    adapter_dtype = None if dtype is None else _as_dtype(dtype)
    dtype = model.dtype if adapter_dtype is None or adapter_only else adapter_dtype
    changes = merge_adapter or dtype != model.dtype
    if changes and publishing is None:
        raise ValueError("`merge_adapter` and `dtype` need the `modeling_magnet` package: install it, or omit them.")
    if merge_adapter:
        publishing.check_can_merge(model, state_dict)

    def write(directory: Path) -> None:
        if adapter_only and publishing is None:
            stock_save(model, directory, state_dict=state_dict, **kwargs)
        elif adapter_only:
            publishing.write_adapter(model, directory, state_dict, adapter_dtype)
        else:
            host, weights = model, state_dict
            if changes:
                host, weights = publishing.changed_checkpoint(model, state_dict, dtype)
            _write_checkpoint(model, partial(stock_save, host), directory, weights, is_main_process, **kwargs)

    if not is_main_process:  # other processes must take part in gathering sharded weights
        with tempfile.TemporaryDirectory() as scratch:
            if not adapter_only:
                write(Path(scratch))
        return
    _check_tokenizer(model)
    if publishing is None:
        write(target)
        return
    publishing.check_not_packed(model)
    with publishing.written_aside(target) as finished:
        write(finished)
        publishing.write_sidecars_and_card(
            model, finished, target, adapter_only=adapter_only, by_library=is_saved_by_library()
        )
        if changes if verify is None else verify:
            publishing.verify_files(model, finished, dtype=dtype)


def _check_tokenizer(model: Any) -> None:
    """Raise an error if the model was loaded with a tokenizer that can no longer be read.

    A known mask token shows that there was one.
    """
    source = model._tokenizer_source
    if source.path and MagnetSettings.from_config(model.config).mask_token_id is not None and source.find() is None:
        raise CheckpointError(
            f"The tokenizer at {source.path!r}, which the model was loaded with, can no longer be read. Nothing was "
            "saved. Restore its files, or set `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
        )


def _write_checkpoint(
    model: Any,
    stock_save: Callable[..., None],
    directory: Path,
    state_dict: dict[str, Any] | None,
    is_main_process: bool,
    **kwargs: Any,
) -> None:
    """Write the weights, the config, the code, the tokenizer and the contrastive head."""
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
    """Write the code into a directory, and edit config.json so that stock classes can open it, too."""
    ours = write_code(type(model), directory)
    config_file = directory / "config.json"
    values = json.loads(config_file.read_text(encoding="utf-8"))
    stock = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers.models."))
    values["architectures"] = [stock.__name__]
    values.pop("auto_map", None)
    values.pop("attribute_map", None)
    if ours is not None:
        values["auto_map"] = {"AutoModel": ours, "AutoModelForCausalLM": ours}
        # A stock class that opens this checkpoint and saves it does not copy our code. It must not copy `auto_map`
        # either, or the copy could not be opened with `trust_remote_code=True`. This relies on two behaviors of
        # `PreTrainedConfig`: it stores a key of config.json under the name that `attribute_map` gives, and it omits
        # the attribute UNWRITTEN from the files that it writes. The Auto classes read `auto_map` from the raw dict.
        values["attribute_map"] = {**type(model.config).attribute_map, "auto_map": UNWRITTEN}
    # sentence-transformers ignores its `config_kwargs` for keys that config.json does not have.
    values["is_causal"] = True
    # If it saves the model itself, it does not write `config_kwargs`, so config.json has to be bidirectional.
    if model.default_mode == "bidirectional" and is_saved_by_library():
        values.update(MagnetSettings.from_config(model.config).encoder_config())
    MagnetSettings.update_config(values, adapter_modes=None)  # a full checkpoint has no adapter
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_saved_by_library() -> bool:
    """Return whether sentence-transformers is saving a model that contains ours.

    There is no hook, so the call stack is inspected.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        is_save = frame.f_code.co_name == "save"
        if is_save and str(frame.f_globals.get("__name__")).split(".")[0] == "sentence_transformers":
            return True
        frame = frame.f_back
    return False


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating-point dtype, which may be passed by name."""
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"`dtype={dtype!r}` is not a floating-point dtype of torch, such as torch.bfloat16.")
    return resolved
