"""The model: a decoder whose forward takes a mode. Contains only what differs from the parent class.

`MagnetMixin` does not depend on an architecture; `MagnetLlamaForCausalLM` combines it with Llama. Most methods only
call a function of another module that takes the model.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from .adapters_magnet import (
    adapters_for,
    bind_adapters,
    forget_deleted_adapter,
    has_adapter,
    load_adapter,
    set_adapter_modes,
)
from .attention_magnet import DEFAULT_ATTENTION, call_decoder
from .checkpoint_magnet import load_model, publishing, save_model
from .configuration_magnet import AttentionMode, MagnetSettings, Similarity, make_causal
from .encoding_magnet import encode as _encode
from .encoding_magnet import encode_as
from .encoding_magnet import preprocess as _preprocess
from .infilling_magnet import fill as _fill
from .infilling_magnet import infill as _infill
from .infilling_magnet import infill_blanks as _infill_blanks
from .infilling_magnet import rewrite as _rewrite
from .losses_magnet import check_labels_are_hidden, soft_cap, token_losses
from .masking_magnet import mask_of_call
from .pooling_magnet import HEAD_NAME, ContrastiveHead, similarity_matrix, similarity_pairs
from .scoring_magnet import score_infill as _score_infill
from .sources_magnet import CARD, ModelSource, TokenizerSource
from .tokenization_magnet import (
    SHORTEST_ROW,
    check_tokenizer_fits,
    check_whole_number,
    context_length,
    resolve_mask_token,
)
from .words_magnet import encode_tokens as _encode_tokens
from .words_magnet import encode_words as _encode_words


@dataclass
class MagnetCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` with the hidden states that embeddings are pooled from, and the losses of `target_ids`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Output of the last layer after the final norm.
        token_losses (`torch.FloatTensor` of the shape of `target_ids`):
            Cross entropy of each target in nats, in float32; 0 without a target.
        token_hits (`torch.BoolTensor` of the shape of `target_ids`):
            Whether a target is the likeliest token; only if gradients are disabled.
    """

    last_hidden_state: torch.FloatTensor | None = None
    token_losses: torch.FloatTensor | None = None
    token_hits: torch.BoolTensor | None = None


@dataclass
class MagnetModelOutput(ModelOutput):
    """The fields of `MagnetCausalLMOutput` in `AutoModel`'s order, so that `output[0]` is the hidden states."""

    loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Any | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    token_losses: torch.FloatTensor | None = None
    token_hits: torch.BoolTensor | None = None


# For type checking, treat the mixin as a `PreTrainedModel`.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Host
else:
    _Host = object


class MagnetMixin(_Host):
    """Add three attention modes, `encode`, `infill` and the checkpoint format to any decoder of transformers.

    Inherit from it first, and then from a `...ForCausalLM` class whose layers have full or sliding attention:

        >>> from transformers import GenerationMixin, MistralForCausalLM
        >>> class MagnetMistralForCausalLM(MagnetMixin, MistralForCausalLM, GenerationMixin):
        ...     pass

    `GenerationMixin` must be named although the second class inherits from it: otherwise transformers creates a new
    class on each load of remote code, whose models cannot be pickled, as multi-process encoding requires.

    The mode is an argument of each call, so that threads can share one model: no call writes to the config, and in
    evaluation mode only caches are filled (the tokenizer, the attention check); `encode(device=...)` moves the model.
    """

    # The contrastive head is saved in its own file, so the main weights never contain it.
    _keys_to_ignore_on_load_missing = [rf"^{HEAD_NAME}\."]

    config: Any
    sscl_head: ContrastiveHead
    _tokenizer_source: TokenizerSource
    # The source of the weights, which is stored with an adapter, and the vocabulary size in that source.
    _weights_source: ModelSource | None = None
    _stored_vocab_size: int | None = None
    _card: str | None = None
    _card_source: ModelSource | None = None
    # The adapters whose layers follow `set_adapter_modes`; peft can add others without calling this class.
    _bound_adapters: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        # Other models may share the config object, so change a copy, and only here.
        config = copy.deepcopy(config)
        # sentence-transformers opens a decoder as an encoder by `is_causal: false`. It selects the default mode and is
        # then removed, because transformers would write to the config in every forward, which is not thread-safe.
        opened_as_encoder = config.__dict__.pop("is_causal", True) is False
        settings = MagnetSettings.validated(config)
        opened_as_encoder |= make_causal(config, settings, opened_as_encoder=opened_as_encoder)
        settings.store_in(config)
        chooses_attention = config._attn_implementation is not None
        super().__init__(config, *args, **kwargs)
        if not chooses_attention and self.config._attn_implementation == "sdpa":
            self.config._attn_implementation = DEFAULT_ATTENTION
        self._tokenizer_source = TokenizerSource(config._name_or_path)
        self._probed: set[tuple[str, ...]] = set()
        self.default_mode: AttentionMode = "bidirectional" if opened_as_encoder else "causal"
        # With remote code, an Auto class sets `_auto_class` just before it loads a model.
        self._output_class: Any = MagnetModelOutput if self._auto_class == "AutoModel" else MagnetCausalLMOutput
        if settings.contrastive_head is not None:
            self.sscl_head = ContrastiveHead(config.hidden_size)
            self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]  # `position_ids` is in `TransformersKwargs`, too, as in the stock classes
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mode: AttentionMode | None = None,
        segment_ids: torch.LongTensor | None = None,
        target_ids: torch.LongTensor | None = None,
        num_targets: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MagnetCausalLMOutput | MagnetModelOutput:
        """Run the parent's forward in a mode. Arguments that are not listed are passed to the parent.

        Args:
            position_ids: By default, positions of real tokens outside causal mode, and the parent's in causal mode.
            logits_to_keep: As in transformers, or a boolean `(B, S)` mask, for logits `(num_true, vocab_size)`.
            mode (`str`, *optional*): `"causal"`: bit for bit the parent. `"bidirectional"`: every token attends to
                every token. `"infill"`: every token attends to the context, and a span token also to its span's past.
                Defaults to causal, or, in a model opened as an encoder (`is_causal: false`), to bidirectional without
                logits. The argument `is_causal` of transformers is supported, too.
            segment_ids (`torch.LongTensor` of shape `(B, KV)`): For infill mode: 0 for context, k >= 1 for the k-th
                span; cached tokens included.
            target_ids (`torch.LongTensor` of shape `(B, S)` or `(K, B, S)`): The token to predict at each position,
                or -100. Returns `token_losses` instead of logits, computed in chunks.
            num_targets (`int`): Upper bound on the number of targets. If omitted, it is counted, which synchronizes
                with the device.

        Raises:
            ValueError: If mode, segment ids, labels and back-end do not fit together.
        """
        mode_of_call = _mode_of_call(mode, kwargs.pop("is_causal", None))
        wants_logits = mode_of_call is not None or labels is not None or self.default_mode == "causal"
        mode = self.default_mode if mode_of_call is None else mode_of_call
        inputs: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache}
        inputs |= {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        with adapters_for(self, mode):  # embeddings and head may have an adapter, too
            if mode != "causal":
                inputs = _inputs_of_mode(self, mode, inputs, segment_ids, labels, kwargs.get("shift_labels"))
            elif segment_ids is not None:
                raise ValueError("`segment_ids` were passed with mode='causal'. Pass them in infill mode only.")
            outputs = call_decoder(self, mode, **inputs, **kwargs)
            states = outputs.last_hidden_state  # (B, S, H)
            fields: dict[str, Any] = {}
            if wants_logits and (target_ids is None or labels is not None):
                fields["logits"] = self._project(_states_to_keep(states, logits_to_keep))
            if target_ids is not None:
                fields |= _losses_of_targets(self, states, target_ids, num_targets)
            if labels is not None:
                loss_inputs = {"logits": fields["logits"], "labels": labels, "vocab_size": self.config.vocab_size}
                fields["loss"] = self.loss_function(**loss_inputs, **kwargs)
        names = ("last_hidden_state", "past_key_values", "hidden_states", "attentions")
        output: Any = self._output_class(**fields, **{name: outputs[name] for name in names if name in outputs})
        return output

    def _project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project hidden states `(..., H)` to logits `(..., V)`; families that do more than this override it."""
        logits: torch.Tensor = self.get_output_embeddings()(hidden_states)
        cap = self._softcap()
        return logits if cap is None else soft_cap(logits, cap)

    def _softcap(self) -> float | None:
        """Return the soft cap of the logits; families with one override this."""
        return None

    def _prepare_4d_causal_attention_mask(
        self,
        attention_mask: torch.Tensor | None,
        input_shape: tuple[int, int] | torch.Size,
        inputs_embeds: torch.Tensor,
        past_key_values_length: int,
        *,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        mode: AttentionMode = "causal",
    ) -> Any:
        """Render the mask of a mode for the active attention back-end; in causal mode return the given mask.

        The name is that of transformers' former method, which subclasses may override to change who attends to whom in
        `forward`. Decoding of spans does not call it: see `attention_pattern` and `StepMasks`.

        Args:
            attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*): Zero for padding.
            input_shape (`tuple[int, int]`): `(B, Q)` of this call.
            inputs_embeds (`torch.Tensor` of shape `(B, Q, H)`): Determines dtype and device.
            past_key_values_length (`int`): Tokens already in the cache.
            position_ids, segment_ids, mode: As in `forward`.

        Raises:
            ValueError: If shapes do not agree, or the mode is not defined for the back-end, the layers or the cache.
        """
        inputs = (attention_mask, input_shape, inputs_embeds, past_key_values_length)
        return mask_of_call(self.config, *inputs, position_ids=position_ids, segment_ids=segment_ids, mode=mode)

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare the parent's inputs in causal mode, even in a model opened as an encoder.

        `generate` looks for the name `inputs_embeds` in this signature.
        """
        mode = _mode_of_call(kwargs.pop("mode", None), kwargs.pop("is_causal", None))
        if mode not in (None, "causal") or kwargs.get("segment_ids") is not None:
            raise ValueError(
                f"`generate` supports causal mode only, but mode={mode!r} or segment ids were passed. "
                "Use `model.infill` to fill a span and `model.encode` for embeddings."
            )
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return {**inputs, "mode": "causal"}

    # The first parameter of these functions is the model, so they can be assigned as methods.

    encode = _encode
    encode_tokens = _encode_tokens
    encode_words = _encode_words
    preprocess = _preprocess
    infill = _infill
    infill_blanks = _infill_blanks
    fill = _fill
    rewrite = _rewrite
    score_infill = _score_infill

    def encode_query(
        self, inputs: str | Sequence[str] | None = None, prompt_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode queries with the stored prompt `query`, if any, unless another prompt is passed.

        Args:
            inputs, prompt_name, kwargs: As in `encode`.
        """
        return encode_as(self, "query", inputs, prompt_name, **kwargs)

    def encode_document(
        self, inputs: str | Sequence[str] | None = None, prompt_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode documents with the stored prompt `document`, if any, unless another prompt is passed.

        Args:
            inputs, prompt_name, kwargs: As in `encode`.
        """
        return encode_as(self, "document", inputs, prompt_name, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Compute the similarities `(N, M)` of every pair of embeddings of two sets.

        Args:
            embeddings1, embeddings2 (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)` and `(M, H)`): Embeddings.
        """
        return similarity_matrix(embeddings1, embeddings2, name=self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Compute the similarities `(N,)` of the embeddings in the same row of two sets.

        Args:
            embeddings1, embeddings2 (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)`): Embeddings.
        """
        return similarity_pairs(embeddings1, embeddings2, name=self.similarity_fn_name)

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Call `preprocess` by its older name.

        Args:
            texts, kwargs: As in `preprocess`.
        """
        return self.preprocess(texts, **kwargs)

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name. Change them in place, or set a new `dict`."""
        return self.magnet_settings.prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        MagnetSettings.update_config(self.config, prompts=dict(prompts))

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt that `encode` uses by default; `None` for no prompt."""
        return self.magnet_settings.default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        MagnetSettings.update_config(self.config, default_prompt_name=name)

    @property
    def similarity_fn_name(self) -> Similarity:
        """The function of `similarity`: `"cosine"`, `"dot"`, `"euclidean"` or `"manhattan"`."""
        return self.magnet_settings.similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        # sentence-transformers also accepts a member of its enumeration, whose value is the name.
        MagnetSettings.update_config(self.config, similarity_fn_name=getattr(name, "value", name))

    @property
    def max_seq_length(self) -> int:
        """Longest row of `encode` in tokens, BOS, prompt and EOS included; longer texts are truncated.

        Setting it writes to the tokenizer's `model_max_length`, as sentence-transformers does.
        """
        return context_length(self.config, self.tokenizer)

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        context = self.config.max_position_embeddings
        check_whole_number(length, name="max_seq_length", minimum=SHORTEST_ROW, maximum=context)
        self.tokenizer.model_max_length = int(length)

    def get_embedding_dimension(self) -> int:
        """Return the number of dimensions of an embedding."""
        return int(self.config.hidden_size)

    def get_sentence_embedding_dimension(self) -> int:
        """Call `get_embedding_dimension` by its older name."""
        return self.get_embedding_dimension()

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter of peft is attached, by transformers or by a `PeftModel` around this model."""
        return has_adapter(self)

    def set_adapter_modes(self, modes: Sequence[AttentionMode] | None) -> None:
        """Choose the modes in which the adapter is enabled.

        With `["bidirectional", "infill"]`, the model generates bit for bit like its base, and encodes and infills with
        the adapter. Each call applies the choice, so that threads can mix modes. It is stored with the adapter.

        Args:
            modes (sequence of `str`, *optional*): `None` for every mode.

        Raises:
            ValueError: If a mode is unknown, or the adapter changes the base's weights or cannot be disabled per call.
        """
        set_adapter_modes(self, modes)

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as transformers does, with the MAGNET settings that are stored with it, if any.

        Raises:
            ValueError: If the adapter has another base, is not in safetensors, or has tensors that do not fit. The
                model is unchanged then.
        """
        return load_adapter(self, super().load_adapter, peft_model_id, *args, **kwargs)

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as transformers does, and apply the modes of `set_adapter_modes` to it, if any."""
        super().add_adapter(*args, **kwargs)
        if self.magnet_settings.adapter_modes is not None:
            bind_adapters(self)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Delete adapters as transformers does; after the last one, the model is the base again."""
        super().delete_adapter(adapter_names)
        forget_deleted_adapter(self)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, mask_token: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a MAGNET checkpoint, a plain decoder with default settings, or a PEFT adapter of either.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of the model or the adapter.
            mask_token (`str`, *optional*): For a plain decoder, the token that replaces masked tokens; defaults to the
                tokenizer's mask token, or to an underscore.
            kwargs: As in transformers. `revision`, `token` and `subfolder` also apply to the tokenizer. If the path is
                an adapter, `revision` and `subfolder` locate it; adapter_config.json names the `revision` of its base.
                With `gguf_file`, weights, config and tokenizer are read from that file, and weights are dequantized.

        Raises:
            ValueError: If the architecture is another, files are missing, damaged or pickles, tensors do not fit, or
                the vocabulary has no mask token. Errors of transformers about its arguments are not converted.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                "`use_safetensors=False` requests a pickle, which MAGNET never loads. If you trust it, load it with "
                "the stock class, convert it with `save_pretrained`, and omit the argument."
            )
        path, load = pretrained_model_name_or_path, super().from_pretrained
        if path is None:  # weights in memory
            return load(None, *model_args, **kwargs)
        return load_model(cls, load, path, *model_args, mask_token=mask_token, **kwargs)

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
        """Save a checkpoint, or only the adapter if the model has one, completely or not at all.

        A checkpoint contains the stock class's weights and config, our code, the tokenizer, the sidecar files of
        sentence-transformers, and the contrastive head, if any, in its own file. An adapter contains PEFT's files, our
        settings and the tokenizer. The installed package writes all files beside the target and moves them into
        place, the config last; without it, remote code writes no card and no sidecars. If sentence-transformers saves
        the model, it writes these itself.

        Args:
            save_directory (`str` or `os.PathLike`): Created, or overwritten file by file.
            is_main_process (`bool`, defaults to `True`): Whether this process writes.
            state_dict (`dict`, *optional*): Weights to write instead of the model's.
            merge_adapter (`bool`, defaults to `False`): Save a full checkpoint with the adapter merged in float32. The
                model is not changed.
            dtype (`torch.dtype` or `str`, *optional*): Dtype of the saved weights; unchanged by default.
            verify (`bool`, *optional*): Whether to load the saved files and compare them with the model before they
                are moved into place. Defaults to true if weights were merged or converted.
            kwargs: As in transformers (`max_shard_size` and so on).

        Raises:
            ValueError: If the target cannot be written, `push_to_hub=True` is passed, the adapter cannot be merged,
                the tokenizer is missing, or the saved files differ from the model.
        """
        if push_to_hub:
            raise ValueError("`push_to_hub=True` is not supported here. Call `model.push_to_hub(repo_id)` instead.")

        def stock_save(host: Any, *args: Any, **kwargs: Any) -> None:
            super().save_pretrained(*args, **kwargs)

        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict}
        save_model(self, stock_save, save_directory, merge_adapter=merge_adapter, dtype=dtype, verify=verify, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:  # type: ignore[override]
        """Save the model and upload it to a repository of the Hub, which is created if it does not exist.

        The model card is `model.card` if it was set, else a hand-written card of the repository, else one of the
        model's source, else a generated one. Remote code without the installed package uses transformers' method.

        Args:
            repo_id (`str`): Name on the Hub, such as `me/mine`.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr` and `tags` as
                in transformers; `max_shard_size`, `merge_adapter` and `dtype` as in `save_pretrained`.

        Returns:
            `CommitInfo`: of `huggingface_hub`.

        Raises:
            ValueError: If the Hub rejects the upload, or the model cannot be saved.
        """
        if publishing is None:
            return super().push_to_hub(repo_id, **options)
        return publishing.push_model(self, repo_id, **options)

    @property
    def magnet_settings(self) -> MagnetSettings:
        """The settings of `config.magnet`."""
        return MagnetSettings.from_config(self.config)

    @property
    def card(self) -> str | None:
        """The model card, the content of README.md: the one that was set, or that of the model's source.

        If this is `None`, `save_pretrained` generates a card, unless the target has a hand-written one. An adapter and
        the model into which it is merged do not share a card.
        """
        if self._card is not None or self._card_source is None:
            return self._card
        return self._card_source.read_text(CARD)

    @card.setter
    def card(self, text: str | None) -> None:
        self._card = text

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was set, or that of the checkpoint, loaded on first use.

        Raises:
            ValueError: If the checkpoint has no tokenizer, or a damaged one.
        """
        source = self._tokenizer_source
        if tokenizer := source.tokenizer or source.find():
            return tokenizer
        raise ValueError(
            f"No tokenizer can be read at {source.path!r}, the model's source. "
            "Set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
        ) from source.error

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        self._tokenizer_source.tokenizer = tokenizer
        if self.magnet_settings.mask_token_id is None:
            mask_token, mask_token_id = resolve_mask_token(tokenizer)
            MagnetSettings.update_config(self.config, mask_token=mask_token, mask_token_id=mask_token_id)


def _mode_of_call(mode: AttentionMode | None, is_causal: bool | None) -> AttentionMode | None:
    """Return the mode of a call, named by `mode` or by transformers' `is_causal`, or `None` for the default."""
    if is_causal is None:
        return mode
    implied: AttentionMode = "causal" if is_causal else "bidirectional"
    if mode not in (None, implied):
        raise ValueError(
            f"mode={mode!r} contradicts is_causal={is_causal}, which implies mode={implied!r}. Pass one of them."
        )
    return implied


def _inputs_of_mode(
    model: Any,
    mode: AttentionMode,
    inputs: dict[str, Any],
    segment_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
) -> dict[str, Any]:
    """Add embeddings, positions and mask to the decoder's inputs in bidirectional or infill mode."""
    cache, embeds, padding = (inputs[name] for name in ("past_key_values", "inputs_embeds", "attention_mask"))
    if cache is not None and cache.is_compileable:
        raise ValueError(
            f"`past_key_values` is a {type(cache).__name__}, to whose empty slots mode={mode!r} would attend. Pass a "
            "DynamicCache."
        )
    if embeds is None:
        embeds = model.get_input_embeddings()(inputs["input_ids"])
    shape, past_length = embeds.shape[:2], 0 if cache is None else cache.get_seq_length()
    positions = _positions(inputs["position_ids"], padding, shape, past_length, device=embeds.device)
    mask = model._prepare_4d_causal_attention_mask(
        padding, shape, embeds, past_length, position_ids=positions, segment_ids=segment_ids, mode=mode
    )
    if labels is not None:
        check_labels_are_hidden(
            labels,
            mode=mode,
            inputs_embeds=embeds,
            embed=model.get_input_embeddings(),
            mask_token_id=MagnetSettings.from_config(model.config).mask_token_id,
            shift_labels=shift_labels,
            attention_mask=padding,
            segment_ids=segment_ids,
        )
    # Create a cache only on request, because a single bidirectional pass never reads it.
    use_cache = cache is not None if inputs["use_cache"] is None else inputs["use_cache"]
    completed = {"input_ids": None, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
    return {**inputs, **completed, "use_cache": use_cache}


def _positions(
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    shape: torch.Size,
    past_length: int,
    *,
    device: torch.device,
) -> torch.Tensor:
    """Return the given positions `(B or 1, Q)`, or count real tokens, or all tokens if there is no padding mask.

    Counting only real tokens makes the positions of a text independent of padding on either side.
    """
    if position_ids is not None:
        if position_ids.shape not in (shape, (1, shape[1])):  # other shapes could broadcast silently
            raise ValueError(
                f"`position_ids` has shape {tuple(position_ids.shape)}; expected {tuple(shape)} or {(1, shape[1])}, "
                "one position per token."
            )
        return position_ids
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return counted[:, counted.shape[1] - shape[1] :]
    return past_length + torch.arange(shape[1], device=device)[None]


def _states_to_keep(states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Select the hidden states that are projected to logits, as transformers does from 5.21 on."""
    if isinstance(logits_to_keep, int):
        return states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return states[logits_to_keep]
    return torch.take_along_dim(states, logits_to_keep[..., None], dim=1)


def _losses_of_targets(
    model: Any, states: torch.Tensor, target_ids: torch.Tensor, num_targets: int | None
) -> dict[str, Any]:
    """Compute the cross entropy of the targets; call `_project` only if the family overrides it."""
    is_plain = type(model)._project is MagnetMixin._project
    computed = token_losses(
        states,
        target_ids,
        head=model.get_output_embeddings(),
        vocab_size=model.config.vocab_size,
        project=None if is_plain else model._project,
        softcap=model._softcap() if is_plain else None,
        num_targets=num_targets,
    )
    return {"token_losses": computed.losses, "token_hits": computed.hits}


class MagnetLlamaForCausalLM(MagnetMixin, LlamaForCausalLM, GenerationMixin):
    """A Llama that generates (causal), encodes (bidirectional) and infills (context and spans).

    Example:

        >>> import torch
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = MagnetLlamaForCausalLM(config)
        >>> ids = torch.tensor([[1, 5, 6, 7]])
        >>> model(ids, mode="infill", segment_ids=torch.tensor([[0, 1, 1, 0]])).logits.shape
        torch.Size([1, 4, 32])
    """
