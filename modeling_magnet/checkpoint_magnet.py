"""One directory, two lives: a MAGNET model with remote code, a stock decoder without it, an embedder beside both."""

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from .adapters_magnet import AdaptersMixin, check_adapter_fits
from .card_magnet import CARD, write_card
from .configuration_magnet import MagnetSettings, check_tokenizer_fits, resolve_mask_token
from .head_magnet import ContrastiveHead
from .merging_magnet import are_tied, merged_weights, verify_files
from .sidecars_magnet import HEAD_WEIGHTS, refusing_contents, sidecar_contents, write_sidecars
from .sources_magnet import (
    ADAPTER_SETTINGS,
    CONFIG,
    SOURCE_ARGUMENTS,
    CheckpointError,
    ModelSource,
    TokenizerSource,
    told_mismatch,
)
from .writing_magnet import written_aside

HEAD_PREFIX = "sscl_head."
# Arguments of transformers by which weights are not where they usually are.
_OTHER_WEIGHTS = ("gguf_file", "variant", "state_dict")


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


class CheckpointMixin(AdaptersMixin):
    """`from_pretrained`, `save_pretrained`, and what a checkpoint knows: its settings and its tokenizer."""

    # The contrastive head has a file of its own, so the main weights never hold it.
    _keys_to_ignore_on_load_missing = [r"^sscl_head\."]

    _tokenizer_source: TokenizerSource
    _card: str | None = None
    _card_source: ModelSource | None = None
    sscl_head: ContrastiveHead

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

        Raises:
            ValueError: another architecture, files that are missing, cut short or no safetensors, tensors that do not
                fit, a vocabulary without a mask token, or no tokenizer to look it up in.
        """
        arguments = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
        source = ModelSource(str(pretrained_model_name_or_path), arguments)
        adapter = _adapter_of_auto_class(kwargs.pop("adapter_kwargs", None))
        if adapter is None and kwargs.get("config") is None:
            base = source.adapter_base()
            if base is not None:
                source, adapter = base, source
                kwargs = {name: value for name, value in kwargs.items() if name not in arguments} | base.arguments
        values = source.config_values(kwargs.get("config"))
        check_is_our_decoder(values, expected=getattr(cls.config_class, "model_type", ""), path=source.path)
        settings = MagnetSettings.from_dict(values.get("magnet") or {}, source=str(source))
        if adapter is not None:
            check_adapter_fits(adapter, values)
            adapter.check_weights()
            stored = adapter.read_json(ADAPTER_SETTINGS)
            settings = settings if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(adapter))
        if not any(kwargs.get(name) for name in _OTHER_WEIGHTS) and kwargs.get("use_safetensors") is None:
            source.check_weights()
            kwargs["use_safetensors"] = True
        # Before the weights: a missing mask token must not cost the time of loading them.
        has_own = adapter is not None and adapter.file("tokenizer_config.json") is not None
        place = adapter if adapter is not None and has_own else source
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
        model: Any
        info: dict[str, Any]
        try:
            # Told to go on, transformers names the tensors that do not fit.
            loaded: Any = super().from_pretrained(
                source.path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
            model, info = loaded
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"The weights of {source} cannot be read into its config.json ({error}). Restore the files that "
                "belong together, or save the model anew."
            ) from error
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
        if adapter is not None:
            where = {name: value for name, value in adapter.arguments.items() if name != "force_download"}
            model.load_adapter(adapter.path, adapter_kwargs=where)
        model.config.magnet = settings.to_dict()
        model._tokenizer_source = tokenizer_source
        ours = source if adapter is None else adapter
        model._card_source = ours if (values.get("magnet") if adapter is None else stored) else None
        if settings.contrastive_head is not None:
            model._load_head(source if adapter is None or adapter.file(HEAD_WEIGHTS) is None else adapter)
        return (model, info) if wants_info else model

    def _load_head(self, source: ModelSource) -> None:
        """The projection that was kept for sentence embeddings, from its own file."""
        file = source.file(HEAD_WEIGHTS)
        if file is None:
            raise CheckpointError(
                f"{source} keeps its contrastive head in {HEAD_WEIGHTS}, which is missing. Fetch it again, or set "
                "`contrastive_head` of `magnet` in config.json to null to encode without it."
            )
        if not hasattr(self, "sscl_head"):  # the settings came with an adapter, after the model was built
            self.sscl_head = ContrastiveHead(self.config.hidden_size).to(device=self.device, dtype=self.dtype)
        self.sscl_head.load_state_dict(load_file(str(file)))

    @property
    def card(self) -> str | None:
        """The model card, content of README.md: the one that was set, else that of where this model came from.

        Without one, `save_pretrained` writes a card from the model alone where there is none yet. The card of an
        adapter is not that of the model it is merged into, nor the other way round.
        """
        if self._card is not None or self._card_source is None:
            return self._card
        return self._card_source.read_text(CARD)

    @card.setter
    def card(self, text: str | None) -> None:
        self._card = text

    def _card_to_save(self, *, adapter_alone: bool) -> str | None:
        """The card that holds for what is saved."""
        source = self._card_source
        came_as_adapter = source is not None and source.file(CONFIG) is None
        return self.card if self._card is not None or came_as_adapter == adapter_alone else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint, loaded on first use, or the one that was set.

        Raises:
            ValueError: there is none where the model came from, or one whose ids the model does not embed.
        """
        tokenizer = self._tokenizer_source.find()
        if tokenizer is None:
            raise ValueError(
                f"No tokenizer at {self._tokenizer_source.path!r}, where the model came from. "
                "Set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        self._tokenizer_source.tokenizer = tokenizer
        if self.config.magnet["mask_token_id"] is None:
            mask_token, mask_token_id = resolve_mask_token(tokenizer)
            self.config.magnet.update(mask_token=mask_token, mask_token_id=mask_token_id)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        *,
        merge_adapter: bool = False,
        dtype: torch.dtype | None = None,
        verify: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint, or the adapter of a model that has one: all of it or nothing.

        A checkpoint is weights, config, code, tokenizer and the sentence-transformers sidecars; its weights are the
        stock class's and nothing else, a contrastive head that the settings keep has its own file. An adapter is the
        files of peft with our settings and the tokenizer; its base is named, not copied. Everything is written to a
        directory beside the target and then moved into place, the config last.

        Args:
            save_directory (`str` or `os.PathLike`): Target directory; created, or overwritten file by file.
            is_main_process (`bool`, defaults to `True`): Whether this process writes.
            state_dict (`dict`, *optional*): Weights to write instead of the model's own.
            merge_adapter (`bool`, defaults to `False`): Save a whole checkpoint with the adapter merged into it, in
                float32, and leave the model as it is. By default a model with an adapter saves the adapter alone.
            dtype (`torch.dtype`, *optional*): What a checkpoint's weights are written in; defaults to the model's.
            verify (`bool`, *optional*): Whether to load what was written, before it is moved into place, and to print
                how far its logits and embeddings are from this model's. Done by default where weights were merged or
                changed their dtype.
            kwargs: As in transformers (`max_shard_size` and so on).

        Raises:
            ValueError: a target that is a file or cannot be written, `push_to_hub=True`, an adapter that cannot be
                merged, or files that do not say what the model says.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"`save_directory` {str(target)!r} is a file; expected a directory. Choose another name.")
        if push_to_hub:
            raise ValueError("`push_to_hub=True` is not supported here. Call `model.push_to_hub(repo_id)` instead.")
        adapter_alone = self.has_adapter and not merge_adapter
        if merge_adapter:
            self._check_can_merge()
        if adapter_alone and dtype is not None:
            raise ValueError(f"`dtype={dtype}` is for whole checkpoints. Pass `merge_adapter=True`, or no dtype.")
        dtype = self.dtype if dtype is None else dtype
        if not is_main_process:  # it may have to take part, where weights are spread over processes
            with tempfile.TemporaryDirectory() as scratch:
                if not adapter_alone:
                    self._write_checkpoint(Path(scratch), state_dict, dtype, is_main_process=False, **kwargs)
            return
        with written_aside(target) as finished:
            if adapter_alone:
                self._write_adapter(finished, state_dict)
                self._write_embedder(finished, self.state_dict(), is_adapter=True)
            else:
                self._write_checkpoint(finished, state_dict, dtype, is_main_process=True, **kwargs)
            card = self._card_to_save(adapter_alone=adapter_alone)
            if card is not None or not (target / CARD).exists():
                card = write_card(self, target.name, merged=merge_adapter) if card is None else card
                (finished / CARD).write_text(card, encoding="utf-8")
            if (merge_adapter or dtype != self.dtype) if verify is None else verify:
                verify_files(self, finished, dtype=dtype)

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
            state_dict = {name: _in_dtype(tensor, dtype) for name, tensor in state_dict.items()}
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
        custom_object_save(self, directory)
        config_file = directory / "config.json"
        values = json.loads(config_file.read_text(encoding="utf-8"))
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("transformers.models."))
        ours = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        values["architectures"] = [stock.__name__]
        values["auto_map"] = {"AutoModel": ours, "AutoModelForCausalLM": ours}
        # sentence-transformers drops its override of a key that the file does not have.
        values["is_causal"] = True
        config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self._write_embedder(directory, weights)

    def _write_embedder(self, directory: Path, weights: dict[str, Any], *, is_adapter: bool = False) -> None:
        """What a checkpoint and an adapter both carry: tokenizer, contrastive head, sentence-transformers sidecars."""
        tokenizer = self._tokenizer_source.find()
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
        if is_adapter and not _base_is_checkpoint(directory):
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


def _base_is_checkpoint(adapter: Path) -> bool:
    """Whether the base of an adapter is one of our checkpoints, whose config has the key that makes an encoder."""
    try:
        base = ModelSource(str(adapter), {}).adapter_base()
    except CheckpointError:
        return False
    return base is not None and "is_causal" in base.config_values()


def _adapter_of_auto_class(arguments: dict[str, Any] | None) -> ModelSource | None:
    """The adapter that an Auto class found where it was pointed, before it handed us the base."""
    arguments = dict(arguments or {})
    path = arguments.pop("_adapter_model_path", None)
    known = {name: arguments[name] for name in SOURCE_ARGUMENTS if arguments.get(name) is not None}
    return None if path is None else ModelSource(str(path), known)


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point weights in another dtype; a whole number stays one."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


__all__ = ["CheckpointMixin"]
