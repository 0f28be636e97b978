"""One directory, two lives: a MAGNET model with remote code, a stock decoder without it, an embedder beside both."""

import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GgufConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from .adapters_magnet import check_adapter_fits, is_resized, load_head
from .configuration_magnet import MagnetSettings, resolve_mask_token
from .sources_magnet import (
    CONFIG,
    HEAD_WEIGHTS,
    SOURCE_ARGUMENTS,
    CheckpointError,
    ModelSource,
    TokenizerSource,
    config_of,
    files_are_at_fault,
    tokenizer_place,
    told_mismatch,
)
from .tokenization_magnet import join_prompt

try:  # what does not travel with a checkpoint: whole directories, model cards, merging, pushing
    from modeling_magnet import publishing
except ImportError:
    publishing = None  # type: ignore[assignment]

POOLING_FOLDER = "1_Pooling"
HEAD_FOLDER = "2_Dense"
LIBRARY = "sentence_transformers"
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
    """Return sidecars that say why sentence-transformers cannot open an adapter correctly."""
    return {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": REFUSAL}]}


def write_sidecars(directory: Path, contents: dict[str, Any]) -> None:
    """Write each content as indented JSON below the directory."""
    for name, content in contents.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_saved_by_library() -> bool:
    """Return whether sentence-transformers is saving a model that ours is a part of: only its callers tell."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "save" and str(frame.f_globals.get("__name__")).split(".")[0] == LIBRARY:
            return True
        frame = frame.f_back
    return False


def leave_to_library(finished: Path, target: Path, *, opened_as_encoder: bool) -> None:
    """Replace our sidecars by sentence-transformers' own files, which it writes before and after our save.

    Our settings in `finished`, which is to be moved to `target`, get the prompts and the similarity that the library's
    user has set. Its files do not say whether the model is read bidirectionally: as for a stock decoder, config.json
    has to.
    """
    for name in (*TOP_FILES, f"{POOLING_FOLDER}/config.json", f"{HEAD_FOLDER}/config.json"):
        (finished / name).unlink(missing_ok=True)
    if (finished / POOLING_FOLDER).is_dir():
        (finished / POOLING_FOLDER).rmdir()
    for name in TOP_FILES:
        if (target / name).is_file():
            shutil.copy(target / name, finished)
    config = finished / CONFIG
    if not config.is_file():  # only an adapter
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
    """Return the config values by which stock classes read a checkpoint of ours bidirectionally."""
    config: dict[str, Any] = {"is_causal": False}
    if settings.bidirectional_window is not None:
        config["sliding_window"] = settings.bidirectional_window
    return config


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
# Arguments that are checked before anything is read, or by which no load fails.
_HARMLESS = (
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "use_safetensors",
    "trust_remote_code",
    "low_cpu_mem_usage",
)
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
    values: dict[str, Any]  # config.json of the model
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
    if not any(kwargs.get(name) for name in _OTHER_WEIGHTS):
        source.check_weights()
    # Before the weights: a missing mask token must not cost the time of loading them.
    tokenizer_source = _find_tokenizer(opened, mask_token)
    wants_info = kwargs.pop("output_loading_info", False)
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    model, info = _read_weights(kind, load, source, opened.values, *model_args, **kwargs)
    _check_tensors(source, info, may_differ=may_differ)
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
    if MagnetSettings.value(model.config, "contrastive_head") is not None and not adapter_is_ours:
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
    if not isinstance(config, PreTrainedConfig):
        config_of(values, kind.config_class, source=str(source))
    settings = MagnetSettings.from_dict(values.get("magnet") or {}, source=str(source))
    if adapter is None:
        return _Opened(source, None, values, settings, is_ours=bool(values.get("magnet")))
    stored = adapter.adapter_settings()
    check_adapter_fits(adapter, stored, values)
    adapter.check_weights()
    if stored is not None:
        settings = MagnetSettings.from_dict(stored["magnet"], source=str(adapter))
    return _Opened(source, adapter, values, settings, is_ours=bool(stored))


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


def _check_tensors(source: ModelSource, info: dict[str, Any], *, may_differ: bool) -> None:
    """Refuse tensors that do not fit or are missing; warn of those that the model has no place for."""
    if info["mismatched_keys"] and not may_differ:
        raise CheckpointError(
            f"The weights of {source} do not fit its config.json: {told_mismatch(info['mismatched_keys'])}. "
            "Restore the files that belong together, or save the model anew."
        )
    if info["missing_keys"]:
        raise CheckpointError(
            f"The weights of {source} lack {sorted(info['missing_keys'])[:3]} ({len(info['missing_keys'])} "
            "tensors), which would be random. An encoder that was saved without its LM head, or a part of a "
            "model, cannot be opened here; name the whole one."
        )
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(HEAD_PREFIX)]
    if unexpected:
        warnings.warn(
            f"The weights of {source} hold {sorted(unexpected)[:3]} ({len(unexpected)} tensors), for which the "
            "model has no place. If its config.json was changed, restore it.",
            stacklevel=4,
        )


def _read_weights(
    kind: Any, load: Callable[..., Any], source: ModelSource, values: dict[str, Any], *model_args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model that `load`, the parent's `from_pretrained`, loads, and what it reports of the tensors."""
    given, path, gguf = set(kwargs), source.path, source.gguf()
    if gguf is None:
        kwargs["use_safetensors"] = True
    else:
        path = str(gguf.parent)
        kwargs = _as_gguf(gguf, values, kind.config_class, kwargs)
    try:
        # Told to go on, transformers names the tensors that do not fit.
        model, info = load(path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except (RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, SafetensorError) as error:
        given = {name for name in given if not name.startswith("_")}
        if model_args or not files_are_at_fault(error, given, harmless=_HARMLESS):
            raise
        raise CheckpointError(
            f"The weights of {source} cannot be read into its config.json ({error}). Restore the files that "
            "belong together, or save the model anew."
        ) from error
    if gguf is not None:
        _forget_quantization(model)
    if path != source.name:  # what an adapter names as its base
        model.config._name_or_path = model.name_or_path = source.name
    return model, info


def _as_gguf(file: Path, values: dict[str, Any], config_class: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by which transformers opens a GGUF file de-quantised, and reads its header no second time."""
    kept = {name: value for name, value in kwargs.items() if name not in SOURCE_ARGUMENTS}
    if not isinstance(kept.get("config"), PreTrainedConfig):
        if kept.get("config") is None:
            config = config_of(values, config_class, source=repr(str(file)))
        else:
            config = config_class.from_pretrained(kept["config"])
        known = config.to_dict()
        for name in [name for name in kept if name in known and name not in ("dtype", "torch_dtype")]:
            setattr(config, name, kept.pop(name))
        kept["config"] = config
    kept["gguf_file"] = str(file)
    # Where a kernel is installed, transformers would otherwise leave the weights quantised.
    if kept.get("quantization_config") is None:
        kept["quantization_config"] = GgufConfig(dequantize=True)
    return kept


def _forget_quantization(model: Any) -> None:
    """Make a model that was read from a GGUF file the plain one that it is, which can be saved and trained."""
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    model.is_quantized = False
    for name in ("quantization_config", "_is_quantized"):
        vars(model.config).pop(name, None)


def _adapter_of_auto_class(arguments: dict[str, Any] | None) -> ModelSource | None:
    """Return the adapter that an Auto class found before it handed us the base."""
    arguments = dict(arguments or {})
    path = arguments.pop("_adapter_model_path", None)
    known = {name: arguments[name] for name in SOURCE_ARGUMENTS if arguments.get(name) is not None}
    return None if path is None else ModelSource(str(path), known)


HEAD_PREFIX = "sscl_head."
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
    _check_not_packed(model)
    with (_written_plainly if publishing is None else publishing.written_aside)(target) as finished:
        if adapter_alone and publishing is None:
            stock_save(model, finished, state_dict=state_dict, **kwargs)
        elif adapter_alone:
            publishing.write_adapter(model, finished, state_dict, adapter_dtype)
            _write_embedder(model, finished, model.state_dict(), is_adapter=True)
        else:
            write(finished)
        if is_saved_by_library():  # card and sidecars are its own, with what its user has set
            leave_to_library(finished, target, opened_as_encoder=model.default_mode == "bidirectional")
        elif publishing is not None:
            publishing.write_card_beside(model, finished, target.resolve(), adapter_alone=adapter_alone)
            if changes if verify is None else verify:
                publishing.verify_files(model, finished, dtype=dtype)


@contextmanager
def _written_plainly(target: Path) -> Iterator[Path]:
    """Yield a directory whose files are copied into the target, which is made: as much as a checkpoint's code does."""
    with tempfile.TemporaryDirectory() as scratch:
        finished = Path(scratch) / "checkpoint"
        yield finished
        shutil.copytree(finished, target, dirs_exist_ok=True)


def _check_tokenizer(model: Any) -> None:
    """Refuse to save without the tokenizer that there was when the model was loaded: its mask token is known."""
    source = model._tokenizer_source
    if source.path and MagnetSettings.value(model.config, "mask_token_id") is not None and source.find() is None:
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
    """Write a whole checkpoint."""
    weights = model.state_dict() if state_dict is None else state_dict
    main_weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD_PREFIX)}
    stock_save(directory, is_main_process=is_main_process, state_dict=main_weights, **kwargs)
    if is_main_process:
        _write_beside_weights(model, directory, weights)


def _write_beside_weights(model: Any, directory: Path, weights: dict[str, Any]) -> None:
    """Turn a directory of stock weights into a checkpoint of ours."""
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
    # sentence-transformers drops its override of a key that the file does not have.
    values["is_causal"] = True
    values["magnet"]["adapter_modes"] = None  # of an adapter, which no whole checkpoint has
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_embedder(model, directory, weights)


def _write_embedder(model: Any, directory: Path, weights: dict[str, Any], *, is_adapter: bool = False) -> None:
    """Write what checkpoints and adapters share: tokenizer, contrastive head, sentence-transformers sidecars."""
    tokenizer = model._tokenizer_source.find()
    # 33 MB beside 8 MB of an adapter, and it comes with the base.
    is_base_own = is_adapter and tokenizer is not None and _is_packaged(tokenizer, model._weights_source)
    if tokenizer is not None and not is_base_own:
        tokenizer.save_pretrained(str(directory))
    modes = MagnetSettings.value(model.config, "adapter_modes")
    # The library would have the adapter always on.
    off = modes is not None and "bidirectional" not in modes
    if is_adapter and (off or is_resized(model) or not _base_is_checkpoint(directory)):
        write_sidecars(directory, refusing_contents())
    else:
        contents = sidecar_contents(
            hidden_size=model.config.hidden_size,
            settings=model.magnet_settings,
            has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
            pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
        )
        write_sidecars(directory, contents)
    if model.magnet_settings.contrastive_head is not None:
        head = {name[len(HEAD_PREFIX) :]: weights[name] for name in weights if name.startswith(HEAD_PREFIX)}
        file = directory / HEAD_WEIGHTS
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in head.items()}, file)


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating-point dtype by torch's name for it."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"`dtype={dtype!r}` is not a floating-point dtype of torch; expected one such as torch.bfloat16."
        )
    return found


def _check_not_packed(model: torch.nn.Module) -> None:
    """Refuse weights that bitsandbytes repacked for a CPU: what it gives back of them is not what they were."""
    for name, parameter in model.named_parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise CheckpointError(
                f"{name} was repacked by the 4-bit kernels of bitsandbytes in a forward on this CPU, and would be "
                "saved wrongly. Load the model again and save it before any forward, or quantise it otherwise."
            )


def _is_packaged(tokenizer: Any, source: ModelSource | None) -> bool:
    """Return whether a tokenizer is, unchanged, that of a base which is installed as a package."""
    if source is None or not source.is_packaged or not tokenizer.is_fast:
        return False
    own: Any = TokenizerSource(source.path, source.arguments).load()
    first, second = (
        (one.backend_tokenizer.to_str(), one.special_tokens_map, one.padding_side, one.model_max_length)
        for one in (own, tokenizer)
    )
    return first == second


def _base_is_checkpoint(adapter: Path) -> bool:
    """Return whether the base of an adapter is one of our checkpoints: its config can make it an encoder."""
    try:
        base = ModelSource(str(adapter), {}).adapter_base()
    except CheckpointError:
        return False
    return base is not None and "is_causal" in base.config_values()


__all__ = [
    "POOLING_MODES",
    "load_model",
    "publishing",
    "refusing_contents",
    "save_model",
    "sidecar_contents",
    "write_sidecars",
]
