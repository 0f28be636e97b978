"""One directory, two lives: a MAGNET model with remote code, a stock decoder without it, an embedder beside both."""

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .card_magnet import CARD, card_bytes, is_ours, read_card, rename_card, write_card
from .code_magnet import write_code
from .loading_magnet import LoadingMixin
from .masking_magnet import AttentionMode
from .merging_magnet import are_tied, in_dtype, merged_weights, verify_files
from .sidecars_magnet import (
    HEAD_WEIGHTS,
    is_saved_by_library,
    leave_to_library,
    refusing_contents,
    sidecar_contents,
    write_sidecars,
)
from .sources_magnet import CONFIG, CheckpointError, ModelSource, TokenizerSource
from .writing_magnet import written_aside

HEAD_PREFIX = "sscl_head."
# An attribute of a config that transformers leaves out of what it saves.
UNWRITTEN = "kwargs"


class CheckpointMixin(LoadingMixin):
    """`save_pretrained`: a checkpoint, or an adapter alone."""

    default_mode: AttentionMode

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        *,
        merge_adapter: bool = False,
        dtype: torch.dtype | str | None = None,
        verify: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint, or the adapter of a model that has one: all of it or nothing.

        A checkpoint is weights, config, code, tokenizer and the sentence-transformers sidecars; its weights are the
        stock class's and nothing else, a contrastive head that the settings keep has its own file. An adapter is the
        files of peft with our settings and the tokenizer; its base is named, not copied. Everything is written to a
        directory beside the target and then moved into place, the config last. As a part of a model that
        sentence-transformers saves, card and sidecars are left to that library.

        Args:
            save_directory (`str` or `os.PathLike`): Target directory; created, or overwritten file by file.
            is_main_process (`bool`, defaults to `True`): Whether this process writes.
            state_dict (`dict`, *optional*): Weights to write instead of the model's own.
            merge_adapter (`bool`, defaults to `False`): Save a whole checkpoint with the adapter merged into it, in
                float32, and leave the model as it is. By default a model with an adapter saves the adapter alone.
            dtype (`torch.dtype` or `str`, *optional*): What the weights are written in; defaults to the model's, for
                an adapter to that of its own weights.
            verify (`bool`, *optional*): Whether to load what was written, before it is moved into place, and to print
                how far its logits and embeddings are from this model's. Done by default where weights were merged or
                changed their dtype.
            kwargs: As in transformers (`max_shard_size` and so on).

        Raises:
            ValueError: a target that is a file or cannot be written, `push_to_hub=True`, an adapter that cannot be
                merged, a tokenizer that is gone, or files that do not say what the model says.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"`save_directory` {str(target)!r} is a file; expected a directory. Choose another name.")
        if push_to_hub:
            raise ValueError("`push_to_hub=True` is not supported here. Call `model.push_to_hub(repo_id)` instead.")
        adapter_alone = self.has_adapter and not merge_adapter
        if merge_adapter:
            self._check_can_merge()
            if state_dict is not None:
                raise ValueError("`merge_adapter=True` merges the model's own weights; pass it or `state_dict`.")
        adapter_dtype = None if dtype is None else _as_dtype(dtype)
        dtype = self.dtype if adapter_dtype is None or adapter_alone else adapter_dtype
        if not is_main_process:  # it may have to take part, where weights are spread over processes
            with tempfile.TemporaryDirectory() as scratch:
                if not adapter_alone:
                    self._write_checkpoint(Path(scratch), state_dict, dtype, is_main_process=False, **kwargs)
            return
        self._check_tokenizer()
        _check_not_packed(self)
        with written_aside(target) as finished:
            if adapter_alone:
                self._write_adapter(finished, state_dict, adapter_dtype)
                self._write_embedder(finished, self.state_dict(), is_adapter=True)
            else:
                self._write_checkpoint(finished, state_dict, dtype, is_main_process=True, **kwargs)
            if is_saved_by_library():  # card and sidecars are its own, with what its user has set
                leave_to_library(finished, target, opened_as_encoder=self.default_mode == "bidirectional")
                return
            card = self._card_to_save(target.resolve(), adapter_alone=adapter_alone)
            if card is not None:
                (finished / CARD).write_bytes(card_bytes(card))
            if (merge_adapter or dtype != self.dtype) if verify is None else verify:
                verify_files(self, finished, dtype=dtype)

    def _card_to_save(self, place: Path, *, adapter_alone: bool) -> str | None:
        """The card that was set; else none where a person's lies there; else the one that came along, or a new one."""
        if self._card is not None:
            return self._card
        there = read_card(place / CARD)
        if there is not None and not is_ours(there):
            return None
        known = self._card_that_came(adapter_alone=adapter_alone)
        return (
            write_card(self, place.name, merged=not adapter_alone) if known is None else rename_card(known, place.name)
        )

    def _card_that_came(self, *, adapter_alone: bool) -> str | None:
        """The card of where the model came from, where it holds for what is saved."""
        source = self._card_source
        if source is None:
            return None
        try:
            return read_card(source.file(CARD)) if (source.file(CONFIG) is None) == adapter_alone else None
        except CheckpointError:  # gone meanwhile, which must not end a save
            return None

    def _check_tokenizer(self) -> None:
        """Refuse to save without the tokenizer that there was when the model was loaded: its mask token is known."""
        source = self._tokenizer_source
        if source.path and self.config.magnet["mask_token_id"] is not None and source.find() is None:
            raise CheckpointError(
                f"The tokenizer at {source.path!r}, where the model came from, cannot be read any more. Nothing was "
                "saved. Restore it, or set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )

    def _check_can_merge(self) -> None:
        if not self.has_adapter:
            raise ValueError("`merge_adapter=True` was given, but this model has no adapter. Leave it out.")
        if self.config.magnet["adapter_modes"] is not None:
            raise ValueError(
                f"The adapter is on in {self.config.magnet['adapter_modes']} alone; merged, it would be on in every "
                "mode. Save it with `merge_adapter=False`, or call `model.set_adapter_modes(None)` first."
            )
        if getattr(self, "is_quantized", False):
            raise ValueError(
                "The base is quantised, and merging into rounded weights would lose the adapter. Load the adapter on "
                "the base without `quantization_config`, and merge it there."
            )

    def _write_checkpoint(
        self,
        directory: Path,
        state_dict: dict[str, Any] | None,
        dtype: torch.dtype,
        *,
        is_main_process: bool,
        **kwargs: Any,
    ) -> None:
        """A whole checkpoint; merged or in another dtype, a twin without weights says what it looks like."""
        host: Any = self
        if self.has_adapter or dtype != self.dtype:
            if state_dict is None:
                state_dict = merged_weights(self) if self.has_adapter else self.state_dict()
            state_dict = in_dtype(state_dict, dtype)
            host = self._twin_without_weights(dtype, tied=are_tied(state_dict, self))
        weights = self.state_dict() if state_dict is None else state_dict
        main_weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD_PREFIX)}
        super(CheckpointMixin, host).save_pretrained(
            directory, is_main_process=is_main_process, state_dict=main_weights, **kwargs
        )
        if is_main_process:
            self._write_beside_weights(directory, weights)

    def _twin_without_weights(self, dtype: torch.dtype, *, tied: bool) -> Any:
        """A model of this class and config without adapters, on no device."""
        config = copy.deepcopy(self.config)
        config.tie_word_embeddings = tied
        with torch.device("meta"):
            twin: Any = type(self)(config)
        twin.to(dtype)
        twin.generation_config = self.generation_config
        return twin

    def _write_beside_weights(self, directory: Path, weights: dict[str, Any]) -> None:
        """Everything that turns a directory of stock weights into ours."""
        ours = write_code(type(self), directory)
        config_file = directory / "config.json"
        values = json.loads(config_file.read_text(encoding="utf-8"))
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("transformers.models."))
        values["architectures"] = [stock.__name__]
        values.pop("auto_map", None)
        values.pop("attribute_map", None)
        if ours is not None:
            values["auto_map"] = {"AutoModel": ours, "AutoModelForCausalLM": ours}
            # A stock class that opens this and saves it again does not write our code, so that it must not write this
            # key either: nobody could open the copy with `trust_remote_code=True`. Read under another name, one that
            # transformers never writes, it stays in the first file alone; the copy opens as a stock decoder.
            values["attribute_map"] = {**type(self.config).attribute_map, "auto_map": UNWRITTEN}
        # sentence-transformers drops its override of a key that the file does not have.
        values["is_causal"] = True
        values["magnet"]["adapter_modes"] = None  # of an adapter, which no whole checkpoint has
        config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self._write_embedder(directory, weights)

    def _write_embedder(self, directory: Path, weights: dict[str, Any], *, is_adapter: bool = False) -> None:
        """What a checkpoint and an adapter both carry: tokenizer, contrastive head, sentence-transformers sidecars."""
        tokenizer = self._tokenizer_source.find()
        # 33 MB beside 8 MB of an adapter, and it comes with the base.
        is_base_own = is_adapter and tokenizer is not None and _is_packaged(tokenizer, self._weights_source)
        if tokenizer is not None and not is_base_own:
            tokenizer.save_pretrained(str(directory))
        modes = self.config.magnet["adapter_modes"]
        # The library would have the adapter always on.
        off = modes is not None and "bidirectional" not in modes
        if is_adapter and (off or self._is_resized or not _base_is_checkpoint(directory)):
            write_sidecars(directory, refusing_contents())
        else:
            contents = sidecar_contents(
                hidden_size=self.config.hidden_size,
                settings=self.magnet_settings,
                has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
                pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
            )
            write_sidecars(directory, contents)
        if self.magnet_settings.contrastive_head is not None:
            head = {name[len(HEAD_PREFIX) :]: weights[name] for name in weights if name.startswith(HEAD_PREFIX)}
            file = directory / HEAD_WEIGHTS
            file.parent.mkdir(exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in head.items()}, file)


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype of weights, by torch's name for it."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"`dtype={dtype!r}` is no floating-point dtype of torch; expected one such as torch.bfloat16."
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
    """Whether a tokenizer is, unchanged, that of a base which is installed as a package."""
    if source is None or not source.is_packaged or not tokenizer.is_fast:
        return False
    own: Any = TokenizerSource(source.path, source.arguments).load()
    first, second = (
        (one.backend_tokenizer.to_str(), one.special_tokens_map, one.padding_side, one.model_max_length)
        for one in (own, tokenizer)
    )
    return first == second


def _base_is_checkpoint(adapter: Path) -> bool:
    """Whether the base of an adapter is one of our checkpoints, whose config has the key that makes an encoder."""
    try:
        base = ModelSource(str(adapter), {}).adapter_base()
    except CheckpointError:
        return False
    return base is not None and "is_causal" in base.config_values()


__all__ = ["CheckpointMixin"]
