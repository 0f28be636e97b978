"""What lies at a path or under a Hub id: a plain decoder, a MAGNET checkpoint, or an adapter and its base.

Everything that can be refused without reading a weight is refused here.
"""

import copy
import json
import os
import struct
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.utils import cached_file

try:  # remote code has no packaged bases
    from modeling_magnet.bases import locate
except ImportError:
    locate = None  # type: ignore[assignment]

# What a load says about where its files are; the tokenizer must come from the same place.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "gguf_file")
# Those that say which files of a repository, and so hold for an adapter and not for its base.
_OF_ONE_REPOSITORY = ("revision", "subfolder", "gguf_file")
# Files with a vocabulary, beside those that the class of a tokenizer names. transformers makes up an empty tokenizer
# for some families where there is none.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")

CONFIG = "config.json"
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Our settings beside an adapter: a config.json there would hide the base from the Auto classes.
ADAPTER_SETTINGS = "magnet_adapter.json"
WEIGHTS = "model.safetensors"
# The contrastive head, in the folder where sentence-transformers looks for its `Dense` module.
HEAD_WEIGHTS = "2_Dense/model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


class CheckpointError(OSError, ValueError):
    """A checkpoint that cannot be read or written: names the file and says what to do.

    It is an `OSError`, because transformers raises that for the same, and a `ValueError` as all our errors.
    """


@dataclass
class TokenizerSource:
    """Where the tokenizer of a model is, and the tokenizer once it was needed."""

    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None

    def find(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer, loaded on first use; `None` if it cannot be read."""
        if self.tokenizer is None and self.path:
            try:
                self.tokenizer = self.load()
            except (OSError, ValueError):
                return None
        return self.tokenizer

    def load(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer from its files; an empty one that transformers makes up for a place without one is
        refused.
        """
        place = ModelSource(self.path, self.arguments)
        gguf = place.gguf()
        if gguf is not None:
            return _gguf_tokenizer(gguf)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.path, trust_remote_code=False, **place.arguments
        )
        names = list(dict.fromkeys([*_VOCABULARIES, *type(tokenizer).vocab_files_names.values()]))
        known = {name: value for name, value in place.arguments.items() if name != "force_download"}
        place = ModelSource(place.path, known)
        # A tokenizer of bytes needs no vocabulary, only the file that names its class.
        without = not type(tokenizer).vocab_files_names and place.file("tokenizer_config.json") is not None
        if not without and not any(place.file(name) for name in names):
            raise CheckpointError(f"{place} has none of {names}, so it holds no tokenizer.")
        return tokenizer


@dataclass(frozen=True)
class ModelSource:
    """One place with the arguments that find its files.

    The short name of a packaged base, such as `gemma-3-270m`, is its directory in the user's cache, or for
    its repository on the Hub where the package is not installed; a directory of that name comes first.
    """

    path: str
    arguments: dict[str, Any]
    # What the source is called where it is stored: the path, unless it stands for a directory in a cache.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path)
        if locate is None or self.directory is not None:
            return
        try:
            found = locate(self.path, on_hub=any(self.arguments.get(key) for key in _OF_ONE_REPOSITORY))
        except OSError as error:
            raise CheckpointError(f"{self.path!r} is installed, and cannot be put into the cache: {error}") from error
        if found is None:
            return
        path, is_cached = found
        object.__setattr__(self, "path", path)
        if not is_cached:
            object.__setattr__(self, "name", path)

    @property
    def directory(self) -> Path | None:
        """The local directory, subfolder included; `None` for a Hub id."""
        folder = Path(self.path) / str(self.arguments.get("subfolder") or "")
        try:
            return folder if Path(self.path).is_dir() else None
        except OSError:  # a name that no directory can have
            return None

    @property
    def is_packaged(self) -> bool:
        """Whether the path is in a cache, and so must not be stored in a file."""
        return self.name != self.path

    def __str__(self) -> str:
        return repr(self.name if self.is_packaged or self.directory is None else str(self.directory))

    def file(self, name: str) -> Path | None:
        """Return a file of the source, downloaded if necessary; `None` if it does not exist."""
        if self.directory is not None:
            return self.directory / name if (self.directory / name).is_file() else None
        where = {key: value for key, value in self.arguments.items() if key != "gguf_file"}
        try:
            found = cached_file(self.path, name, **where, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self} is no directory here, and as a repository it cannot be read "
                f"({first_line(error)}). Check the name and `revision`; for a private repository "
                "pass `token`; without a network, name a local directory."
            ) from error
        return None if found is None else Path(found)

    def gguf(self) -> Path | None:
        """Return the GGUF file that the model is in; `None` where none was asked for."""
        name = self.arguments.get("gguf_file")
        if name is None:
            return None
        file = self.file(str(name)) if name else None
        if file is not None and self.directory is not None and self._relative(file).startswith(os.pardir):
            raise CheckpointError(
                f"`gguf_file` is {name!r:.80}, which is outside of {self}. Name the directory that the file is in."
            )
        if file is None:
            there = [] if self.directory is None else sorted(path.name for path in self.directory.glob("*.gguf"))
            raise CheckpointError(
                f"`gguf_file` is {name!r:.80}, and {self} has no such file. Name one that is there"
                + (f": {there[:5]}." if there else ".")
            )
        return file

    def _relative(self, file: Path) -> str:
        return os.path.relpath(file, self.directory)

    def gguf_note(self) -> dict[str, Any] | None:
        """Return the name and size of the base's GGUF file, which an adapter stores."""
        gguf = None if self.is_packaged else self.gguf()
        if gguf is None:
            return None
        name = self.arguments["gguf_file"] if self.directory is None else Path(self._relative(gguf)).as_posix()
        return {"name": name, "size": gguf.stat().st_size}

    def read_text(self, name: str) -> str | None:
        """Return the content of a text file; `None` if it does not exist."""
        file = self.file(name)
        return None if file is None else file.read_text(encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file; `None` where there is no file."""
        file = self.file(name)
        if file is None:
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{str(file)!r} is not JSON ({error}). Restore the file or save the model anew."
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(
                f"{str(file)!r} holds {type(values).__name__}; expected an object. Restore the file."
            )
        return values

    def adapter_base(self) -> "ModelSource | None":
        """Return the model an adapter here was trained on; `None` without an adapter, or with one beside its base."""
        if self.directory is not None and (self.directory / CONFIG).is_file():
            return None
        asked = self.arguments.get("gguf_file")
        if asked and self.file(str(asked)) is not None:
            return None
        values = self.read_json(ADAPTER_CONFIG)
        if values is None:
            return None
        base, revision = values.get("base_model_name_or_path"), values.get("revision")
        if not base:
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self} names no base model. Write its directory or Hub id there, as "
                "`base_model_name_or_path`."
            )
        for name, value in (("base_model_name_or_path", base), ("revision", revision or "")):
            if not isinstance(value, str):
                raise CheckpointError(
                    f"`{name}` in {ADAPTER_CONFIG} of {self} is {value!r:.60}; expected a string. Correct it."
                )
        arguments = {name: value for name, value in self.arguments.items() if name not in _OF_ONE_REPOSITORY}
        if revision:
            arguments["revision"] = revision
        try:
            source = self._base_with_its_file(ModelSource(base, arguments))
            found = source.gguf() or source.file(CONFIG) or source.file(ADAPTER_CONFIG)
        except CheckpointError as error:
            raise CheckpointError(f"{self} is an adapter, and its base cannot be read: {error}") from error
        if found is None or found.name == ADAPTER_CONFIG:
            kind = "an adapter itself; merge it first" if found is not None else "no model: it has no config.json"
            raise CheckpointError(
                f"{self} is an adapter whose base, {source}, is {kind}. Correct `base_model_name_or_path` in "
                f"{ADAPTER_CONFIG}."
            )
        return source

    def _base_with_its_file(self, base: "ModelSource") -> "ModelSource":
        """Return the base of this adapter with the GGUF file that was asked for or that the adapter was trained on."""
        asked = self.arguments.get("gguf_file")
        stored = (self.read_json(ADAPTER_SETTINGS) or {}).get("gguf_file")
        if base.is_packaged or not (asked or stored):
            return base
        if asked:
            return ModelSource(base.path, {**base.arguments, "gguf_file": asked})
        if not isinstance(stored, dict) or not isinstance(stored.get("name"), str):
            raise CheckpointError(
                f"`gguf_file` in {ADAPTER_SETTINGS} of {self} is {stored!r:.60}; expected an object with the name and "
                "the size of a file. Restore it."
            )
        found = ModelSource(base.path, {**base.arguments, "gguf_file": stored["name"]})
        if base.file(stored["name"]) is None and base.file(CONFIG) is not None:
            warnings.warn(
                f"The adapter at {self} was trained on {stored['name']!r}, which {base} does not hold; its base is "
                "opened from the other weights there.",
                stacklevel=2,
            )
            return base
        file = found.gguf()
        if file is not None and file.stat().st_size != stored.get("size"):
            raise CheckpointError(
                f"The adapter at {self} was trained on {stored['name']!r} of {stored.get('size')} bytes; the one at "
                f"{base} has {file.stat().st_size}. Restore that file, or pass `gguf_file` to take this one."
            )
        return found

    def adapter_settings(self) -> dict[str, Any] | None:
        """Return our settings beside an adapter and `base`, the shape of its base; `None` beside adapters of
        others.
        """
        values = self.read_json(ADAPTER_SETTINGS)
        if values is None:
            return None
        for name in ("magnet", "base"):
            if not isinstance(values.get(name), dict):
                found = f"{values[name]!r:.60}" if name in values else "missing"
                raise CheckpointError(
                    f"`{name}` in {ADAPTER_SETTINGS} of {self} is {found}; expected an object. Restore the file, or "
                    "save the adapter anew."
                )
        return values

    def config_values(self, config: PreTrainedConfig | str | None = None) -> dict[str, Any]:
        """Return the content of config.json, or of a config that is given in its place."""
        if isinstance(config, PreTrainedConfig):
            return config.to_dict()
        place = self if config is None else ModelSource(str(config), self.arguments)
        gguf = self.gguf() if config is None else None
        values = place.read_json(CONFIG) if gguf is None else gguf_values(gguf)
        if values is None and place.directory is None:
            raise CheckpointError(
                f"{place} is no directory here, and as a repository it has no config.json that can be read. Check the "
                "name, `revision` and `subfolder`; without a network, or in offline mode, only what was downloaded "
                "before is there."
            )
        if values is None:
            raise CheckpointError(
                f"{place} has no config.json, so it holds no model, or one whose saving was interrupted. Name another "
                "directory or Hub id."
            )
        if not values.get("model_type"):
            raise CheckpointError(
                f"config.json of {place} holds no model_type, so nothing says what model it is. Restore the file, or "
                "write the type there, such as 'llama'."
            )
        if not isinstance(values["model_type"], str):
            raise CheckpointError(
                f"`model_type` in config.json of {place} is {values['model_type']!r:.60}; expected a string such as "
                "'llama'. Restore the file."
            )
        return values

    def check_weights(self) -> None:
        """Refuse a local directory whose weights are missing, cut short or a pickle. Reads headers only."""
        folder = self.directory
        if folder is None or self.arguments.get("gguf_file"):  # of a GGUF file, `config_values` reads the header
            return
        adapter, index = folder / ADAPTER_WEIGHTS, self.read_json(WEIGHTS_INDEX)
        is_adapter = self.file(ADAPTER_CONFIG) is not None and self.file(CONFIG) is None
        if is_adapter:
            expected = [adapter]
        elif index is not None and not (folder / WEIGHTS).is_file():
            shards = index.get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(f"{str(folder / WEIGHTS_INDEX)!r} has no `weight_map`. Save the model anew.")
            if not isinstance(index.get("metadata", {}), dict):
                raise CheckpointError(
                    f"`metadata` in {str(folder / WEIGHTS_INDEX)!r} is {index['metadata']!r:.60}; expected an object. "
                    "Save the model anew."
                )
            for tensor, shard in shards.items():
                if not isinstance(shard, str) or not shard:
                    raise CheckpointError(
                        f"`weight_map` in {str(folder / WEIGHTS_INDEX)!r} has {shard!r:.60} for {tensor!r}; expected "
                        "the name of a file. Save the model anew."
                    )
                if Path(shard).is_absolute() or ".." in Path(shard).parts:
                    raise CheckpointError(
                        f"`weight_map` in {str(folder / WEIGHTS_INDEX)!r} has {shard!r:.60} for {tensor!r}, which is "
                        "outside its directory. Put the file beside the index and correct its name."
                    )
            expected = [folder / name for name in sorted(set(shards.values()))]
        else:
            expected = [folder / WEIGHTS]
        for file in expected:
            if _is_file(file):
                check_safetensors(file)
                continue
            pickle = next((name for name in PICKLES if (folder / name).is_file()), None)
            if pickle is not None:
                raise CheckpointError(
                    f"{str(folder / pickle)!r} is a pickle, which can run any code when it is read; expected "
                    f"{file.name}. Convert it where you trust it: load it with the stock class and `save_pretrained`."
                )
            raise CheckpointError(f"{str(file)!r} is missing. Fetch it again, or save the model anew.")


def gguf_values(file: Path) -> dict[str, Any]:
    """Return what config.json would hold for the model in a GGUF file, as transformers reads its header."""
    state = file.stat()
    return copy.deepcopy(_gguf_values(str(file), state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=8)  # of a large vocabulary, each reading takes seconds
def _gguf_values(file: str, size: int, changed: int) -> dict[str, Any]:
    try:
        values: dict[str, Any] = PreTrainedConfig.get_config_dict(file, gguf_file=file)[0]
    except ImportError as error:
        raise ValueError(f"{file!r} is a GGUF file, which the package `gguf` reads: `pip install gguf`.") from error
    except Exception as error:  # the readers look at what they need, and complain in their own ways
        raise CheckpointError(
            f"{file!r} ({size} bytes) cannot be read as GGUF: {type(error).__name__}: {first_line(error)}. Fetch it "
            "again, or name a file of a family that transformers reads."
        ) from error
    values.pop("_model_name_or_path", None)  # a title, not the name of a place
    return values


def _gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a GGUF file."""
    kind = str(gguf_values(file).get("model_type"))
    # Told the type, transformers does not read the header once more; Mistral's class depends on further files.
    known = {"tokenizer_type": kind} if TOKENIZER_MAPPING_NAMES.get(kind) and kind != "mistral" else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=str(file), trust_remote_code=False, **known
        )
    except Exception as error:  # as above
        raise CheckpointError(
            f"{str(file)!r} holds no tokenizer that can be read ({type(error).__name__}: {first_line(error)})."
        ) from error
    _drop_tokens_beyond(tokenizer, gguf_values(file).get("vocab_size"))
    return tokenizer


def _drop_tokens_beyond(tokenizer: Any, size: int | None) -> None:
    """Take away what transformers adds to a vocabulary of a GGUF file: an `<|endoftext|>` that the model lacks."""
    if size is None or len(tokenizer) <= size or not tokenizer.is_fast:
        return
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < size]
    if values["model"].get("unk_token") not in values["model"]["vocab"]:
        values["model"]["unk_token"] = None
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(values))


def files_are_at_fault(error: Exception, arguments: Collection[str], *, harmless: Collection[str]) -> bool:
    """Return whether a load failed because of the files, and not of the machine or an argument of the caller."""
    if isinstance(error, SafetensorError):
        return True
    of_machine = isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == "AcceleratorError"
    if of_machine or "memory" in str(error).lower() or torch.get_default_device().type == "meta":
        return False
    return set(arguments) <= {*harmless, *SOURCE_ARGUMENTS}


def config_of(values: dict[str, Any], config_class: Any, *, source: str) -> PreTrainedConfig:
    """Build the config of a family from the content of config.json; a `CheckpointError` names an invalid value."""
    try:
        config: PreTrainedConfig = config_class.from_dict(copy.deepcopy(values))
        config.to_dict()  # also what is only looked at when it is written
    except Exception as error:  # each family checks its fields in its own way
        raise CheckpointError(
            f"config.json of {source} is not a valid {values.get('model_type')!r} config ({first_line(error)}). "
            "Restore the file."
        ) from error
    return config


def tokenizer_place(model: ModelSource, adapter: ModelSource | None) -> ModelSource:
    """Return where the tokenizer is: an adapter's own goes before that of its base."""
    has_own = adapter is not None and adapter.file("tokenizer_config.json") is not None
    return adapter if adapter is not None and has_own else model


def told_mismatch(mismatched: Collection[tuple[str, Any, Any]]) -> str:
    """Describe tensors that do not fit, of which transformers reports names, stored and expected shapes."""
    name, stored, built = min(mismatched, key=lambda entry: entry[0])
    return f"{name} has shape {tuple(stored)} where {tuple(built)} is expected ({len(mismatched)} tensors)"


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file that was cut short, by its header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = stream.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        ends = [_end(entry["data_offsets"]) for name, entry in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{str(file)!r} ({size} bytes) has no readable safetensors header: it was cut short or is of another "
            "format. Fetch it again, or save the model anew."
        ) from error
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise CheckpointError(
            f"{str(file)!r} has {size} bytes where its header promises {wanted}. Fetch it again, or save the model "
            "anew."
        )


def _is_file(file: Path) -> bool:
    """Return whether there is such a file, also for a name that no file can have."""
    try:
        return file.is_file()
    except OSError:
        return False


def _end(offsets: Any) -> int:
    """Return the second of two whole numbers in ascending order."""
    first, last = offsets
    if type(first) is not int or type(last) is not int or not 0 <= first <= last:
        raise ValueError(f"data_offsets are {offsets!r:.60}")
    return last


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_SETTINGS",
    "ADAPTER_WEIGHTS",
    "CARD",
    "CONFIG",
    "HEAD_WEIGHTS",
    "SOURCE_ARGUMENTS",
    "CheckpointError",
    "ModelSource",
    "TokenizerSource",
    "check_safetensors",
    "config_of",
    "files_are_at_fault",
    "first_line",
    "gguf_values",
    "told_mismatch",
    "tokenizer_place",
]
