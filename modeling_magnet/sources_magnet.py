"""What lies at a path or under a Hub id: a plain decoder, a MAGNET checkpoint, or an adapter and its base."""

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

# What a load says about where its files are; the tokenizer must come from the same place.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "gguf_file")
# Those that say which files of a repository, and so hold for an adapter and not for its base.
_OF_ONE_REPOSITORY = ("revision", "subfolder", "gguf_file")
# Arguments of a load that say only where files are, and those that are checked before anything is read, or by which
# it does not fail.
_OF_PLACES = (*SOURCE_ARGUMENTS, "adapter_kwargs")
_HARMLESS = (
    *("attn_implementation", "dtype", "torch_dtype", "use_safetensors", "trust_remote_code", "low_cpu_mem_usage"),
    *("adapter_name", "hotswap", "ignore_mismatched_sizes", "is_trainable"),
)
# Files with a vocabulary, beside those that the class of a tokenizer names. transformers makes up an empty tokenizer
# for some families where there is none.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")

CONFIG = "config.json"
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Our settings beside an adapter: a config.json there would hide the base from the Auto classes.
ADAPTER_SETTINGS = "magnet_adapter.json"
# The contrastive head, in the folder where sentence-transformers looks for its `Dense` module.
HEAD_WEIGHTS = "2_Dense/model.safetensors"


class CheckpointError(OSError, ValueError):
    """A checkpoint that cannot be read or written: names the file and says what to do.

    It is an `OSError`, because transformers raises that for the same, and a `ValueError` as all our errors.
    """


@contextmanager
def wrap_read_errors(what: str, *, arguments: Collection[str] | None = None) -> Iterator[None]:
    """Turn any error of the block into a `CheckpointError` that says what was read.

    Args:
        what (`str`): The file or source, for the message.
        arguments (collection of `str`, *optional*): What the caller has passed to a load. An error of theirs, or of
            the machine, is raised as it is.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # each reader complains in its own way
        if arguments is not None and _is_of_caller(error, arguments):
            raise
        raise CheckpointError(
            f"{what} cannot be read ({type(error).__name__}: {first_line(error)}). Restore the files that belong "
            "together, or save the model anew."
        ) from error


def _is_of_caller(error: Exception, arguments: Collection[str]) -> bool:
    """Return whether a load failed for want of memory or for an argument that only it checks, not for its files."""
    if isinstance(error, SafetensorError | OSError):
        return False
    given = {name for name in arguments if name not in _OF_PLACES and not name.startswith("_")}
    of_machine = isinstance(error, MemoryError | ImportError) or "memory" in str(error).lower()
    return (
        of_machine
        or torch.get_default_device().type == "meta"
        or not given <= set(_HARMLESS)
        or (isinstance(error, ValueError) and bool(given))
    )


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
        """Read the tokenizer from its files, and refuse the empty one that transformers makes up without them."""
        place = ModelSource(self.path, self.arguments)
        gguf = place.gguf()
        if gguf is not None:
            with wrap_read_errors(f"The tokenizer in {str(gguf)!r}"):
                return bases.gguf.read_tokenizer(gguf)
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

    The short name of a packaged base, such as `gemma-3-270m`, is its directory in the user's cache, or its
    repository on the Hub where the package is not installed; a directory of that name comes first.
    """

    path: str
    arguments: dict[str, Any]
    # What the source is called where it is stored: the path, unless it stands for a directory in a cache.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path)
        if bases is None or self.directory is not None:
            return
        with wrap_read_errors(f"The packaged model {self.path!r}"):
            found = bases.locate(self.path, on_hub=any(self.arguments.get(key) for key in _OF_ONE_REPOSITORY))
        if found is not None:
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
                f"{self} is not a directory here, and cannot be read as a repository ({first_line(error)}). Check the "
                "name and `revision`; for a private repository pass `token`; without a network, name a directory."
            ) from error
        return None if found is None else Path(found)

    def gguf(self) -> Path | None:
        """Return the GGUF file that the model is in; `None` where none was asked for."""
        name = self.arguments.get("gguf_file")
        if name is None:
            return None
        if bases is None:
            raise CheckpointError("`gguf_file` needs the installed package: `pip install` it, or leave it out.")
        with wrap_read_errors(f"`gguf_file` {name!r:.80}"):
            return bases.gguf.find(self, str(name))

    def read_text(self, name: str) -> str | None:
        """Return the content of a text file; `None` if it does not exist."""
        file = self.file(name)
        return None if file is None else file.read_text(encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file; `None` where there is no file."""
        file = self.file(name)
        if file is None:
            return None
        with wrap_read_errors(repr(str(file))):
            values = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"it holds {values!r:.60}; expected an object")
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
        if not base or not isinstance(base, str) or not isinstance(revision, str | None):
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self} names the base {base!r:.60} at revision {revision!r:.60}; expected the "
                "directory or Hub id of a model, as `base_model_name_or_path`."
            )
        arguments = {name: value for name, value in self.arguments.items() if name not in _OF_ONE_REPOSITORY}
        try:
            source = ModelSource(base, arguments | ({"revision": revision} if revision else {}))
            if bases is not None:
                stored = (self.read_json(ADAPTER_SETTINGS) or {}).get("gguf_file")
                source = bases.gguf.base_of_adapter(source, asked=asked, stored=stored)
            if source.gguf() is None and source.file(CONFIG) is None:
                raise ValueError(f"{source} has no config.json, so it is not a model; merge an adapter first")
        except Exception as error:  # whatever it is, it is found in a place that the caller did not name
            raise CheckpointError(
                f"{self} is an adapter, and its base cannot be read: {first_line(error)} Correct "
                f"`base_model_name_or_path` in {ADAPTER_CONFIG}."
            ) from error
        return source

    def adapter_settings(self) -> dict[str, Any] | None:
        """Return our settings beside an adapter and the shape of its `base`; `None` beside adapters of others."""
        values = self.read_json(ADAPTER_SETTINGS)
        if values is not None and not all(isinstance(values.get(name), dict) for name in ("magnet", "base")):
            raise CheckpointError(
                f"{ADAPTER_SETTINGS} of {self} lacks `magnet` or `base`, or one is not an object. Restore the file, "
                "or save the adapter anew."
            )
        return values

    def config_values(self, config: PreTrainedConfig | str | None = None) -> dict[str, Any]:
        """Return the content of config.json, or of a config that is given in its place."""
        if isinstance(config, PreTrainedConfig):
            return config.to_dict()
        place = self if config is None else ModelSource(str(config), self.arguments)
        gguf = self.gguf() if config is None else None
        if gguf is not None:
            with wrap_read_errors(repr(str(gguf))):
                return bases.gguf.config_values(gguf)
        values = place.read_json(CONFIG)
        if values is None:
            raise CheckpointError(
                f"{place} has no config.json that can be read, so it holds no model, or one whose saving was "
                "interrupted. Check the name, `revision` and `subfolder`; offline, only what was downloaded before is "
                "there."
            )
        return values


def tokenizer_place(model: ModelSource, adapter: ModelSource | None) -> ModelSource:
    """Return where the tokenizer is: an adapter's own goes before that of its base."""
    has_own = adapter is not None and adapter.file("tokenizer_config.json") is not None
    return adapter if adapter is not None and has_own else model


def check_tensors(source: Any, **wrong: Collection[str]) -> None:
    """Refuse tensors, named by what is wrong with them, that transformers only warns of."""
    for kind, names in wrong.items():
        if names:
            raise CheckpointError(
                f"The weights of {source} do not fit: {len(names)} {kind} tensors, such as {sorted(names)[:3]}. They "
                "are of another model or a part of one, or were cut short. Restore the files that belong together."
            )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
