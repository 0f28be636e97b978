"""Adapters of peft on our models: opened with the settings stored beside them, taken off, and written."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .adapter_checks_magnet import BASE_SHAPE, check_adapter_fits, check_adapter_imports_nothing
from .binding_magnet import ADAPTER_LAYERS, BINDABLE_LAYERS, BindingMixin
from .configuration_magnet import MagnetSettings
from .head_magnet import ContrastiveHead
from .sidecars_magnet import HEAD_WEIGHTS
from .sources_magnet import (
    ADAPTER_CONFIG,
    ADAPTER_SETTINGS,
    ADAPTER_WEIGHTS,
    CheckpointError,
    ModelSource,
    files_are_at_fault,
    first_line,
    told_mismatch,
)

try:  # needed only by models that have an adapter
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
except ImportError:
    pass

# What peft raises over a configuration or weights that it cannot use.
_UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError)
# Arguments of `load_adapter` by which reading an adapter does not fail in these ways.
_HARMLESS = (
    "adapter_name",
    "adapter_kwargs",
    "hotswap",
    "ignore_mismatched_sizes",
    "is_trainable",
    "low_cpu_mem_usage",
)
# How peft names the weights of an adapter of a model that it wraps.
_PREFIX = "base_model.model."
# Where an adapter stores the embedding matrix and the LM head of a base whose vocabulary was resized.
_EMBEDDINGS = re.compile(r"(?:.*\.)?(?:embed_tokens|lm_head)(?:\.base_layer)?\.weight")


class AdaptersMixin(BindingMixin):
    """Load adapters with their settings, and write them."""

    sscl_head: ContrastiveHead
    # Where the weights came from, which an adapter is stored with.
    _weights_source: ModelSource | None = None
    # The vocabulary there, by which a resized one is known.
    _stored_vocab_size: int | None = None

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a directory of ours brings the settings that were stored with the adapter.

        Raises:
            ValueError: the adapter is of another base or no safetensors, or its tensors do not fit. The model is then
                as it was.
        """
        source, stored = None, None
        if peft_model_id is not None:
            source = ModelSource(str(peft_model_id), dict(kwargs.get("adapter_kwargs") or {}))
            stored = source.adapter_settings()
            check_adapter_fits(source, stored, self.config.to_dict())
            check_adapter_imports_nothing(source)
            if kwargs.get("adapter_state_dict") is None and source.file(ADAPTER_WEIGHTS) is None:
                raise CheckpointError(
                    f"The adapter at {source} has no {ADAPTER_WEIGHTS}; a pickle such as adapter_model.bin is never "
                    "read here. Fetch the file again, or convert the adapter with peft where you trust it."
                )
        name = (args[0] if args else kwargs.get("adapter_name")) or "default"
        known = name in (getattr(self, "peft_config", None) or {})
        settings = None if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(source))
        # Of the base's names, which transformers forgets over those of the adapter and would save the base by.
        conversions = getattr(self, "_weight_conversions", None)
        embeddings = {} if stored is None or source is None else self._resized_embeddings(source, stored)
        before = self.config.vocab_size
        try:
            if embeddings and before != stored["resized_vocab_size"]:  # type: ignore[index]
                self.resize_token_embeddings(stored["resized_vocab_size"], mean_resizing=False)  # type: ignore[index]
            # Told to go on, transformers names the tensors that do not fit.
            report = self._load_by_parent(peft_model_id, *args, **{**kwargs, "ignore_mismatched_sizes": True})
            self._check_adapter_report(report, source, name)
            self._set_embeddings(embeddings)
            if settings is not None and settings.contrastive_head is not None and source is not None:
                self._load_head(source)
            if settings is not None:
                self.config.magnet = settings.to_dict()
            if self.config.magnet["adapter_modes"] is not None:
                self._bind_adapters()
        except ValueError:
            if not known and name in (getattr(self, "peft_config", None) or {}):
                self.delete_adapter(name)
            if self.config.vocab_size != before:
                self.resize_token_embeddings(before, mean_resizing=False)
            raise
        finally:
            self._weight_conversions = conversions
        return report

    def _load_by_parent(self, peft_model_id: str | None, *args: Any, **kwargs: Any) -> Any:
        """`load_adapter` of transformers and peft, whose errors over a directory do not always name it.

        Raises:
            CheckpointError: naming the adapter: a configuration that peft cannot use, or weights that are none.
        """
        try:
            return super().load_adapter(peft_model_id, *args, **kwargs)
        except _UNUSABLE as error:
            # In memory, they are the caller's own objects, and so the caller's errors.
            if args[1:] or peft_model_id is None or not files_are_at_fault(error, kwargs, harmless=_HARMLESS):
                raise
            raise CheckpointError(
                f"The adapter at {str(peft_model_id)!r} cannot be used ({type(error).__name__}: {first_line(error)}). "
                f"Restore {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or save it anew."
            ) from error

    def _check_adapter_report(self, report: Any, source: ModelSource | None, name: str) -> None:
        """Refuse what transformers would have gone on with."""
        where = "in memory" if source is None else f"at {source}"
        if report.mismatched_keys:
            raise CheckpointError(
                f"The adapter {where} does not fit this model: {told_mismatch(report.mismatched_keys)}. "
                "Load the base it was trained on."
            )
        missing = [key for key in report.missing_keys if f".{name}." in f"{key}."]
        unexpected = list(report.unexpected_keys)
        if (missing or unexpected) and source is not None:  # kinds of adapters whose names only peft knows
            missing, unexpected = self._load_by_peft(source, name)
        unexpected = [key for key in unexpected if not _EMBEDDINGS.fullmatch(key)]
        wrong = sorted(missing) or sorted(unexpected)
        if wrong:
            kind = "lacks" if missing else "has more than its configuration says:"
            raise CheckpointError(
                f"The adapter {where} {kind} {wrong[:3]} ({len(wrong)} tensors). It belongs to another model or was "
                "cut short; load the base it was trained on, or save it anew."
            )

    def _load_by_peft(self, source: ModelSource, name: str) -> tuple[list[str], list[str]]:
        """Read an adapter's weights by peft itself; returns what is missing and what is left over."""
        file = source.file(ADAPTER_WEIGHTS)
        if file is None:
            return [], []
        stored = {key.removeprefix(_PREFIX): tensor for key, tensor in load_file(str(file)).items()}
        try:
            result: Any = set_peft_model_state_dict(self, stored, adapter_name=name)
        except _UNUSABLE as error:
            if not files_are_at_fault(error, (), harmless=()):
                raise
            raise CheckpointError(
                f"The weights of the adapter at {source} do not go with its {ADAPTER_CONFIG} "
                f"({type(error).__name__}: {first_line(error)}). Restore the files that belong together."
            ) from error
        missing = [key for key in result.missing_keys if f".{name}." in f"{key}."]
        return missing, list(result.unexpected_keys)

    def _resized_embeddings(self, source: ModelSource, stored: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The embedding matrix and the LM head of an adapter whose base was resized, by their names in the model.

        Raises:
            CheckpointError: its settings say that it was resized, and it lacks them.
        """
        size = stored.get("resized_vocab_size")
        file = source.file(ADAPTER_WEIGHTS)
        if size is None or file is None:
            return {}
        tensors = {key.removeprefix(_PREFIX): value for key, value in load_file(str(file)).items()}
        found = {name: value for name, value in tensors.items() if _EMBEDDINGS.fullmatch(name)}
        wrong = sorted(name for name, tensor in found.items() if tensor.dim() != 2 or tensor.shape[0] != size)
        if wrong or not found or type(size) is not int:
            raise CheckpointError(
                f"The adapter at {source} was trained on a vocabulary resized to {size!r:.40}, and its embeddings "
                f"{'do not fit: ' + wrong[0] if wrong else 'are missing'}. Save it anew."
            )
        return found

    def _ends(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The embedding matrix and an LM head that is not tied to it, unless peft itself stores them as trained."""
        names = {id(module): name for name, module in self.named_modules()}
        ends: list[Any] = [self.get_input_embeddings(), self.get_output_embeddings()]
        keys = [f"{names[id(end)]}{inner}.weight" for end in ends for inner in ("", ".base_layer")]
        tensors = {key: weights[key] for key in keys if key in weights}
        return tensors if not self.config.tie_word_embeddings else dict(list(tensors.items())[:1])

    @torch.no_grad()
    def _set_embeddings(self, embeddings: dict[str, torch.Tensor]) -> None:
        """Take the rows of a resized vocabulary over from an adapter."""
        known = self.state_dict()
        for name, tensor in embeddings.items():
            layer, _, leaf = name.rpartition(".")
            name = name if name in known else f"{layer}.base_layer.{leaf}"
            if any(key.startswith(f"{layer}.modules_to_save.") for key in known):  # peft has set it
                continue
            if name not in known or known[name].shape != tensor.shape:
                raise CheckpointError(f"The adapter stores {name!r}, for which this model has no place. Save it anew.")
            known[name].copy_(tensor)
        ends: list[Any] = [self.get_input_embeddings(), self.get_output_embeddings()]
        # What peft has put around an end it has tied itself; of adapted ends it knows no ties.
        if embeddings and isinstance(ends[1], BINDABLE_LAYERS) and hasattr(ends[1], "get_base_layer"):
            if self.config.tie_word_embeddings:
                (tensor,) = embeddings.values()
                ends[1].get_base_layer().weight.copy_(tensor)
        elif embeddings and not any(hasattr(end, "original_module") for end in ends):
            self.tie_weights()

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; a model that is bound to modes binds the new adapter as well."""
        super().add_adapter(*args, **kwargs)
        if self.config.magnet["adapter_modes"] is not None:
            self._bind_adapters()

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """As in transformers; without its last adapter the model is the base again, and bound to nothing."""
        super().delete_adapter(adapter_names)
        if getattr(self, "peft_config", None):
            self._bound_adapters = tuple(self.peft_config) if self._bound_adapters else ()
            return
        layers: list[tuple[str, Any]] = [
            (name, module) for name, module in self.named_modules() if isinstance(module, ADAPTER_LAYERS)
        ]
        for name, module in layers:
            parent, _, child = name.rpartition(".")
            base = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
            setattr(self.get_submodule(parent), child, base)
        self._hf_peft_config_loaded = False  # transformers' own mark, by which it would save an adapter
        self._bound_adapters = ()
        self.config.magnet["adapter_modes"] = None

    def _load_head(self, source: ModelSource) -> None:
        """The projection that was kept for sentence embeddings, from its own file."""
        file = source.file(HEAD_WEIGHTS)
        if file is None:
            raise CheckpointError(
                f"{source} keeps its contrastive head in {HEAD_WEIGHTS}, which is missing. Fetch it again, or set "
                "`contrastive_head` of `magnet` in its settings to null to encode without it."
            )
        # Made anew: it may have come with an adapter, and what quantised the base may have quantised it.
        self.sscl_head = ContrastiveHead(self.config.hidden_size).to(device=self.device, dtype=self.dtype)
        self.sscl_head.load_state_dict(load_file(str(file)))

    def _active_adapter(self) -> str:
        """The one adapter that is on.

        Raises:
            ValueError: there are several.
        """
        names = {name for layer in self._adapter_layers() for name in layer.active_adapters}  # type: ignore[union-attr]
        if len(names) != 1:
            raise ValueError(
                f"The active adapters are {sorted(names)}; a directory holds one. Choose it with `model.set_adapter`."
            )
        return str(names.pop())

    @property
    def _is_resized(self) -> bool:
        """Whether the vocabulary has another size than where the weights came from."""
        return self._stored_vocab_size not in (None, self.config.vocab_size)

    def _write_adapter(
        self, directory: Path, weights: dict[str, Any] | None, dtype: torch.dtype | None = None
    ) -> None:
        """Weights, peft's configuration and our settings of the active adapter, as peft reads them.

        Of a base whose vocabulary was resized, the embedding matrix and the LM head come along, as by peft's own rule.

        Args:
            directory (`Path`): Where to; it is made.
            weights (`dict`, *optional*): In place of the model's.
            dtype (`torch.dtype`, *optional*): What the tensors are written in; their own by default.
        """
        name = self._active_adapter()
        config = copy.deepcopy(self.peft_config[name])
        config.base_model_name_or_path = config.base_model_name_or_path or self.config._name_or_path
        self._name_base(config)
        if not config.base_model_name_or_path:
            raise ValueError(
                "An adapter is stored with the name of its base, and this model has none: it was not loaded from "
                "anywhere. Save it with `merge_adapter=True`, or load the base from a directory."
            )
        if self._is_resized and getattr(config, "trainable_token_indices", None):
            raise ValueError(
                "The vocabulary was resized and the adapter has `trainable_token_indices`, which cannot be stored "
                "together. Save it with `merge_adapter=True`, or train the embeddings by `modules_to_save`."
            )
        config.inference_mode = True
        vars(config).update(sets_in_order(config))
        state = get_peft_model_state_dict(self, state_dict=weights, adapter_name=name, save_embedding_layers=False)
        if self._is_resized:
            state |= self._ends(self.state_dict() if weights is None else weights)
        kept = {key: tensor.detach().cpu() for key, tensor in state.items()}
        if dtype is not None:
            kept = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in kept.items()}
        directory.mkdir(parents=True)
        save_file(
            {f"{_PREFIX}{key}": tensor.contiguous() for key, tensor in kept.items()},
            directory / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        config.save_pretrained(str(directory))
        self.write_adapter_settings(directory)

    def _name_base(self, config: Any) -> None:
        """Say which files of a directory or a repository the base is, where this model was loaded from there."""
        source = self._weights_source
        if source is None or source.is_packaged or config.base_model_name_or_path != source.path:
            return
        if source.directory is not None:
            config.base_model_name_or_path = str(source.directory)
        elif source.arguments.get("subfolder"):
            raise ValueError(
                f"The base is the folder {source.arguments['subfolder']!r} of {source}, and peft has no way to name "
                "it. Save with `merge_adapter=True`, or load the base from a directory or repository of its own."
            )
        if source.arguments.get("revision"):
            config.revision = source.arguments["revision"]

    def write_adapter_settings(self, directory: Path) -> None:
        """Our settings and the shape of the base, beside the files of peft.

        Args:
            directory (`Path`): The adapter's.
        """
        values = self.config.to_dict()
        contents = {"magnet": self.config.magnet, "base": {key: values.get(key) for key in BASE_SHAPE}}
        if self._is_resized:
            contents["base"]["vocab_size"] = self._stored_vocab_size
            contents["resized_vocab_size"] = self.config.vocab_size
        note = None if self._weights_source is None else self._weights_source.gguf_note()
        if note is not None:
            contents["gguf_file"] = note
        (directory / ADAPTER_SETTINGS).write_text(
            json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def sets_in_order(config: Any) -> dict[str, list[Any]]:
    """The fields that peft keeps as sets, such as `target_modules`, sorted: a set has another order in each process.

    Args:
        config (`PeftConfig`): It is not changed.
    """
    return {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}


__all__ = ["AdaptersMixin", "sets_in_order"]
