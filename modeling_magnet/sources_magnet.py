"""Locate and read the files of a checkpoint or an adapter in a directory or on the Hub."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

try:  # a saved checkpoint needs neither packaged bases nor GGUF files
    from modeling_magnet import bases
except ImportError:
    bases = None  # type: ignore[assignment]

# Arguments of `from_pretrained` that locate the files; the tokenizer is read with the same ones.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "gguf_file")
# Those that select files of one repository. They apply to an adapter, but not to its base.
_OF_ONE_REPOSITORY = ("revision", "subfolder", "gguf_file")
# Arguments that only locate files, and arguments that cannot make a load fail.
_LOCATING = (*SOURCE_ARGUMENTS, "adapter_kwargs")
_HARMLESS = (
    *("attn_implementation", "dtype", "torch_dtype", "use_safetensors", "trust_remote_code", "low_cpu_mem_usage"),
    *("adapter_name", "hotswap", "ignore_mismatched_sizes", "is_trainable"),
)
# Vocabulary files, besides those that a tokenizer class names. For some families transformers creates an empty
# tokenizer if none of them exists.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")

CONFIG = "config.json"
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# MAGNET settings of an adapter. They are not in a config.json, which would hide the base from the Auto classes.
ADAPTER_SETTINGS = "magnet_adapter.json"
# Weights of the contrastive head, in the folder where sentence-transformers looks for its `Dense` module.
HEAD_WEIGHTS = "2_Dense/model.safetensors"


class CheckpointError(OSError, ValueError):
    """Raised if a checkpoint cannot be read or written; names the file and the remedy.

    An `OSError` like the one transformers raises, and a `ValueError` like all errors of this package.
    """


@contextmanager
def wrap_read_errors(what: str, *, arguments: Collection[str] | None = None) -> Iterator[None]:
    """Turn any error of the block into a `CheckpointError` about `what`.

    Args:
        what (`str`): Name of the file or source, for the message.
        arguments (collection of `str`, *optional*): Names of the caller's arguments of a load. Errors that an argument
            or the machine may have caused are then raised unchanged.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise KeyError, JSONDecodeError, RuntimeError and others
        if arguments is not None and not _is_about_files(error, arguments):
            raise
        raise CheckpointError(
            f"{what} cannot be read ({type(error).__name__}: {first_line(error)}). Restore its files, or save the "
            "model again."
        ) from error


def _is_about_files(error: Exception, arguments: Collection[str]) -> bool:
    """Return whether a load failed because of its files, and not because of memory or an argument."""
    if isinstance(error, SafetensorError | OSError):
        return True
    passed = {name for name in arguments if name not in _LOCATING and not name.startswith("_")}
    if isinstance(error, MemoryError | ImportError) or "memory" in str(error).lower():
        return False
    is_on_meta = torch.get_default_device().type == "meta"
    return not is_on_meta and passed <= set(_HARMLESS) and not (isinstance(error, ValueError) and passed)


@dataclass
class TokenizerSource:
    """Location of a model's tokenizer, which is loaded on first use."""

    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    error: Exception | None = None  # why it could not be read, after `find` returned `None`

    def find(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer; `None` if it cannot be read."""
        if self.tokenizer is None and self.path:
            try:
                self.tokenizer = self.load()
            except (OSError, ValueError) as error:
                self.error = error
        return self.tokenizer

    def load(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer. Raise a `CheckpointError` if transformers would create an empty one."""
        source = ModelSource(self.path, self.arguments)
        gguf = source.gguf()
        if gguf is not None:
            with wrap_read_errors(f"The tokenizer in {str(gguf)!r}"):
                return bases.gguf.read_tokenizer(gguf)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=False, **source.arguments
        )
        names = list(dict.fromkeys([*_VOCABULARIES, *type(tokenizer).vocab_files_names.values()]))
        # The files were just downloaded: do not download them again.
        arguments = {name: value for name, value in source.arguments.items() if name != "force_download"}
        source = ModelSource(source.path, arguments)
        # A byte-level tokenizer such as ByT5's has no vocabulary file, only the file that names its class.
        if not type(tokenizer).vocab_files_names and source.file("tokenizer_config.json") is not None:
            return tokenizer
        if not any(source.file(name) for name in names):
            raise CheckpointError(f"{source} has none of {names}, so it does not contain a tokenizer.")
        return tokenizer


@dataclass(frozen=True)
class ModelSource:
    """A directory or Hub id, with the arguments that locate its files.

    `path` may be the short name of a packaged base, such as `gemma-3-270m`, unless a directory has that name. It
    resolves to a directory in the user's cache, or to the Hub id if the package is not installed.
    """

    path: str
    arguments: dict[str, Any]
    # The name to store in files: the Hub id for a packaged base, otherwise the path.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path)
        if bases is None or self.directory is not None:
            return
        with wrap_read_errors(f"The packaged model {self.path!r}"):
            location = bases.locate(self.path, on_hub=any(self.arguments.get(key) for key in _OF_ONE_REPOSITORY))
        if location is not None:
            path, hub_id = location
            object.__setattr__(self, "path", path)
            object.__setattr__(self, "name", hub_id)

    @property
    def directory(self) -> Path | None:
        """The local directory, including the subfolder; `None` for a Hub id."""
        folder = Path(self.path) / str(self.arguments.get("subfolder") or "")
        try:
            return folder if Path(self.path).is_dir() else None
        except OSError:  # too long for a file name, for example
            return None

    @property
    def is_packaged(self) -> bool:
        """Whether the path is in the user's cache, so that files must store `name` instead."""
        return self.name != self.path

    def __str__(self) -> str:
        return repr(self.name if self.is_packaged or self.directory is None else str(self.directory))

    def file(self, name: str) -> Path | None:
        """Return the path of a file, downloaded if necessary; `None` if it does not exist."""
        if self.directory is not None:
            return self.directory / name if (self.directory / name).is_file() else None
        arguments = {key: value for key, value in self.arguments.items() if key != "gguf_file"}
        try:
            file = cached_file(self.path, name, **arguments, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self} is not a local directory and cannot be read from the Hub ({first_line(error)}). Check the "
                "name and `revision`; for a private repository pass `token`; offline, pass a directory."
            ) from error
        return None if file is None else Path(file)

    def gguf(self) -> Path | None:
        """Return the path of the GGUF file named by `gguf_file`; `None` without that argument."""
        name = self.arguments.get("gguf_file")
        if name is None:
            return None
        if bases is None:
            raise CheckpointError("`gguf_file` needs the `modeling_magnet` package: install it, or omit the argument.")
        with wrap_read_errors(f"`gguf_file` {name!r:.80}"):
            return bases.gguf.find(self, str(name))

    def read_text(self, name: str) -> str | None:
        """Return the content of a text file; `None` if it does not exist."""
        file = self.file(name)
        return None if file is None else file.read_text(encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file; `None` if it does not exist."""
        file = self.file(name)
        if file is None:
            return None
        with wrap_read_errors(repr(str(file))):
            values = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"it holds {values!r:.60}; expected an object")
        return values

    def adapter_base(self) -> "ModelSource | None":
        """Return the base of the adapter at this source; `None` if there is no adapter, or a model beside it."""
        if self.directory is not None and (self.directory / CONFIG).is_file():
            return None
        requested = self.arguments.get("gguf_file")
        if requested and self.file(str(requested)) is not None:
            return None
        values = self.read_json(ADAPTER_CONFIG)
        if values is None:
            return None
        base, revision = values.get("base_model_name_or_path"), values.get("revision")
        if not base or not isinstance(base, str) or not isinstance(revision, str | None):
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self} names the base {base!r:.60} at revision {revision!r:.60}; expected a "
                "directory or Hub id as `base_model_name_or_path`."
            )
        arguments = {name: value for name, value in self.arguments.items() if name not in _OF_ONE_REPOSITORY}
        if bases is not None and revision is None:
            base = bases.SHORT_NAMES.get(base, base)  # an installed package needs no network
        try:
            source = ModelSource(base, arguments | ({"revision": revision} if revision else {}))
            if bases is not None:
                stored = (self.read_json(ADAPTER_SETTINGS) or {}).get("gguf_file")
                source = bases.gguf.base_of_adapter(source, requested=requested, stored=stored)
            if source.gguf() is None and source.file(CONFIG) is None:
                raise ValueError(f"{source} has no readable config.json: it is not a model or not reachable.")
        except Exception as error:  # the caller did not name the base: every message must say where it is named
            raise CheckpointError(
                f"{self} is an adapter, and its base cannot be read: {first_line(error)} Correct "
                f"`base_model_name_or_path` in {ADAPTER_CONFIG}."
            ) from error
        return source

    def adapter_settings(self) -> dict[str, Any] | None:
        """Return the content of magnet_adapter.json; `None` if the adapter is not one of MAGNET."""
        values = self.read_json(ADAPTER_SETTINGS)
        if values is not None and not all(isinstance(values.get(name), dict) for name in ("magnet", "base")):
            raise CheckpointError(
                f"{ADAPTER_SETTINGS} of {self} lacks `magnet` or `base`, or one is not an object. Restore the file, "
                "or save the adapter again."
            )
        return values

    def config_values(self, config: PreTrainedConfig | str | None = None) -> dict[str, Any]:
        """Return the content of config.json, or of `config` if it is passed."""
        if isinstance(config, PreTrainedConfig):
            return config.to_dict()
        source = self if config is None else ModelSource(str(config), self.arguments)
        gguf = self.gguf() if config is None else None
        if gguf is not None:
            with wrap_read_errors(repr(str(gguf))):
                return bases.gguf.config_values(gguf)
        values = source.read_json(CONFIG)
        if values is None:
            raise CheckpointError(
                f"{source} has no config.json that can be read: not a model, or an interrupted save. Check the name, "
                "`revision` and `subfolder`; offline, only files downloaded before are available."
            )
        return values


def tokenizer_source_of(model: ModelSource, adapter: ModelSource | None) -> ModelSource:
    """Return the source of the tokenizer: the adapter if it has one, otherwise the model."""
    return adapter if adapter is not None and adapter.file("tokenizer_config.json") is not None else model


def check_tensors(source: Any, **names_by_fault: Collection[str]) -> None:
    """Raise a `CheckpointError` for tensors that are, for example, `missing=`; transformers only warns of them."""
    for fault, names in names_by_fault.items():
        if names:
            raise CheckpointError(
                f"The weights of {source} do not fit: {len(names)} {fault} tensors, such as {sorted(names)[:3]}. They "
                "belong to another model, or are incomplete. Restore the files of this model."
            )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
