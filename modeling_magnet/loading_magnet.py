"""Opened from a directory or the Hub: a checkpoint, a plain decoder or an adapter, with its settings and tokenizer."""

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GgufConfig, PreTrainedConfig, PreTrainedTokenizerBase

from .adapter_checks_magnet import check_adapter_fits
from .adapters_magnet import AdaptersMixin
from .card_magnet import CARD
from .configuration_magnet import MagnetSettings, check_tokenizer_fits, resolve_mask_token
from .sources_magnet import (
    SOURCE_ARGUMENTS,
    CheckpointError,
    ModelSource,
    TokenizerSource,
    config_of,
    files_are_at_fault,
    tokenizer_place,
    told_mismatch,
)

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
    """Refuse a checkpoint of another architecture before its weights are read.

    Raises:
        ValueError: naming both model types.
    """
    if values.get("model_type") != expected:
        raise ValueError(
            f"{path!r} holds a model of type {values.get('model_type')!r}; this class adapts {expected!r}. "
            "Choose a decoder-only checkpoint of that type, or the MAGNET class of its family."
        )


def check_names_no_kernel(values: dict[str, Any], *, path: str) -> None:
    """Refuse a config that has attention computed by code of a repository: that is for the user to ask for.

    Raises:
        ValueError: naming the repository.
    """
    for key in _ATTENTION:
        if "/" in json.dumps(values.get(key)):
            raise ValueError(
                f"config.json of {path!r} has {key!r} {values[key]!r:.80}, a repository whose code would be run. "
                "Remove it there; where you trust that code, pass `attn_implementation` yourself."
            )


class LoadingMixin(AdaptersMixin):
    """`from_pretrained`, and what a model knows of where it came from: settings, tokenizer, card."""

    # The contrastive head has a file of its own, so the main weights never hold it.
    _keys_to_ignore_on_load_missing = [r"^sscl_head\."]

    _tokenizer_source: TokenizerSource
    _card: str | None = None
    _card_source: ModelSource | None = None

    @property
    def magnet_settings(self) -> MagnetSettings:
        """The validated form of `config.magnet`."""
        return MagnetSettings.from_dict(self.config.magnet, source=repr(self.config._name_or_path))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, mask_token: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a MAGNET checkpoint, a plain decoder with default settings, or an adapter of peft over either.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of the model or the adapter.
            mask_token (`str`, *optional*): For a plain decoder, the token that hides a context token; defaults to
                the tokenizer's own, else to an underscore.
            kwargs: As in transformers. Revision, token and subfolder reach the tokenizer, too; of an adapter, revision
                and subfolder are the adapter's own, and its base is read at the `revision` of adapter_config.json.
                With `gguf_file`, weights, config and tokenizer are those of that file. The weights are de-quantised,
                so that the model trains and saves as any other; an adapter names the file beside its base.

        Raises:
            ValueError: another architecture, files that are missing, cut short or no safetensors, tensors that do not
                fit, a vocabulary without a mask token, no tokenizer to look it up in, or `use_safetensors=False`.
                What transformers raises for its own arguments, or for want of memory, is raised as it is.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                "`use_safetensors=False` asks for a pickle, which is never read here. Leave it out; convert the "
                "weights where you trust them: load them with the stock class and `save_pretrained`."
            )
        if pretrained_model_name_or_path is None:  # weights in memory
            return super().from_pretrained(None, *model_args, **kwargs)
        arguments = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
        source = ModelSource(str(pretrained_model_name_or_path), arguments)
        stored = None
        adapter = _adapter_of_auto_class(kwargs.pop("adapter_kwargs", None))
        if adapter is None:
            base = source.adapter_base()
            if base is not None:
                source, adapter = base, source
        kwargs = {name: value for name, value in kwargs.items() if name not in arguments} | source.arguments
        values = source.config_values(kwargs.get("config"))
        check_is_our_decoder(values, expected=getattr(cls.config_class, "model_type", ""), path=source.path)
        check_names_no_kernel(values, path=source.path)
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            config_of(values, cls.config_class, source=str(source))
        settings = MagnetSettings.from_dict(values.get("magnet") or {}, source=str(source))
        if adapter is not None:
            stored = adapter.adapter_settings()
            check_adapter_fits(adapter, stored, values)
            adapter.check_weights()
            settings = settings if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(adapter))
        if not any(kwargs.get(name) for name in _OTHER_WEIGHTS):
            source.check_weights()
        # Before the weights: a missing mask token must not cost the time of loading them.
        place = tokenizer_place(source, adapter)
        tokenizer_source = TokenizerSource(place.path, place.arguments)
        tokenizer = tokenizer_source.find() if settings.mask_token_id is None or mask_token is not None else None
        if tokenizer is None and mask_token is not None:
            raise ValueError(
                f"mask_token={mask_token!r} was given, but there is no tokenizer at {source} to look it up in. Put "
                "the tokenizer's files there, or set `model.tokenizer` after loading."
            )
        if tokenizer is not None:
            settings.mask_token, settings.mask_token_id = resolve_mask_token(tokenizer, mask_token)
        wants_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = cls._read_weights(source, values, *model_args, **kwargs)
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
        unexpected = [key for key in info["unexpected_keys"] if not key.startswith("sscl_head.")]
        if unexpected:
            warnings.warn(
                f"The weights of {source} hold {sorted(unexpected)[:3]} ({len(unexpected)} tensors), for which the "
                "model has no place. If its config.json was changed, restore it.",
                stacklevel=2,
            )
        model._tokenizer_source, model._weights_source = tokenizer_source, source
        model._stored_vocab_size = model.config.vocab_size
        if adapter is not None:
            of_base = ("force_download", "gguf_file")
            where = {name: value for name, value in adapter.arguments.items() if name not in of_base}
            model.load_adapter(adapter.path, adapter_kwargs=where)
        # An adapter that came with the weights has brought its own settings.
        model.config.magnet.update(mask_token=settings.mask_token, mask_token_id=settings.mask_token_id)
        ours = source if adapter is None else adapter
        model._card_source = ours if (values.get("magnet") if adapter is None else stored) else None
        if model.config.magnet["contrastive_head"] is not None and (adapter is None or stored is None):
            model._load_head(source)
        return (model, info) if wants_info else model

    @classmethod
    def _read_weights(
        cls, source: ModelSource, values: dict[str, Any], *model_args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The model that transformers loads, and what it says of the tensors.

        Raises:
            CheckpointError: the files cannot be read.
        """
        given, path, gguf = set(kwargs), source.path, source.gguf()
        if gguf is None:
            kwargs["use_safetensors"] = True
        else:
            path = str(gguf.parent)
            kwargs = _as_gguf(gguf, values, cls.config_class, kwargs)
        try:
            # Told to go on, transformers names the tensors that do not fit.
            loaded: Any = super().from_pretrained(
                path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except (RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, SafetensorError) as error:
            given = {name for name in given if not name.startswith("_")}
            if model_args or not files_are_at_fault(error, given, harmless=_HARMLESS):
                raise
            raise CheckpointError(
                f"The weights of {source} cannot be read into its config.json ({error}). Restore the files that "
                "belong together, or save the model anew."
            ) from error
        model, info = loaded
        if gguf is not None:
            _forget_quantization(model)
        if path != source.name:  # what an adapter names as its base
            model.config._name_or_path = model.name_or_path = source.name
        return model, info

    @property
    def card(self) -> str | None:
        """The model card, content of README.md: the one that was set, else that of where this model came from.

        Without one, `save_pretrained` writes a card from the model alone, unless somebody's own lies there. The card
        of an adapter is not that of the model it is merged into, nor the other way round.
        """
        if self._card is not None or self._card_source is None:
            return self._card
        return self._card_source.read_text(CARD)

    @card.setter
    def card(self, text: str | None) -> None:
        self._card = text

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint, loaded on first use, or the one that was set.

        Raises:
            ValueError: there is none where the model came from.
        """
        tokenizer = self._tokenizer_source.find()
        if tokenizer is None:
            raise ValueError(
                f"No tokenizer at {self._tokenizer_source.path!r}, where the model came from. "
                "Set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        self._tokenizer_source.tokenizer = tokenizer
        if self.config.magnet["mask_token_id"] is None:
            mask_token, mask_token_id = resolve_mask_token(tokenizer)
            self.config.magnet.update(mask_token=mask_token, mask_token_id=mask_token_id)


def _as_gguf(file: Path, values: dict[str, Any], config_class: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by which transformers opens a GGUF file de-quantised, and reads its header no second time.

    Args:
        file (`Path`): The file. It is named in full, or one of the same name in the working directory would be read.
        values (`dict`): What config.json would hold.
        config_class (`type`): Of the family.
        kwargs (`dict`): What the caller passed.
    """
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
    """The adapter that an Auto class found where it was pointed, before it handed us the base."""
    arguments = dict(arguments or {})
    path = arguments.pop("_adapter_model_path", None)
    known = {name: arguments[name] for name in SOURCE_ARGUMENTS if arguments.get(name) is not None}
    return None if path is None else ModelSource(str(path), known)


__all__ = ["LoadingMixin"]
