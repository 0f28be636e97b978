"""The model: a decoder whose forward takes a mode. Says only what differs from the parent class.

`MagnetMixin` knows no architecture; `MagnetLlamaForCausalLM` lends it Llama's.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from .attention_magnet import DEFAULT_ATTENTION, MASK_IS_OURS
from .causal_base_magnet import make_causal
from .configuration_magnet import MagnetSettings
from .head_magnet import ContrastiveHead
from .infilling_magnet import InfillingMixin
from .labels_magnet import check_labels_are_hidden
from .masking_magnet import (
    MASKED_BACKENDS,
    AttentionMode,
    attention_pattern,
    check_mode,
    check_position_ids,
    check_segment_ids,
    layer_windows,
    mode_of_call,
    positions_from_mask,
    render_for_layers,
)
from .rows_magnet import forward_rows
from .sources_magnet import TokenizerSource
from .states_magnet import StatesMixin
from .token_losses_magnet import TokenLosses, token_losses
from .words_magnet import WordsMixin


def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The states that logits are wanted of: as in transformers from 5.21 on."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)


@dataclass
class MagnetCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` with the states that embeddings are read from, and what became of `target_ids`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Output of the last layer after the final norm.
        token_losses (`torch.FloatTensor` of the shape of `target_ids`):
            Cross entropy of each target in nats, in float32; 0 where there is none.
        token_hits (`torch.BoolTensor` of the shape of `target_ids`):
            Whether a target is the likeliest token; only where gradients are off.
    """

    last_hidden_state: torch.FloatTensor | None = None
    token_losses: torch.FloatTensor | None = None
    token_hits: torch.BoolTensor | None = None


@dataclass
class MagnetModelOutput(ModelOutput):
    """The fields of `MagnetCausalLMOutput`, states before logits, as the outputs of `AutoModel` have them.

    Whatever takes the first entry of an output, such as the pipeline for feature extraction, gets the states.
    """

    loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Any | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    token_losses: torch.FloatTensor | None = None
    token_hits: torch.BoolTensor | None = None


class MagnetMixin(WordsMixin, InfillingMixin):
    """Three attention modes, `encode`, `infill` and the checkpoint format for any decoder of transformers.

    Put it in front of a `...ForCausalLM` class whose layers all attend to the full sequence:

        >>> from transformers import GenerationMixin, MistralForCausalLM
        >>> class MagnetMistralForCausalLM(MagnetMixin, MistralForCausalLM, GenerationMixin):
        ...     pass

    The last is a base of the second already; but where remote code does not name it, transformers makes a new class of
    each load, whose models cannot be pickled: sentence-transformers could start no processes.

    The mode is an argument of each call, so that threads can share one model: no call writes to the config, nor, in
    evaluation mode, to the model.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        # A config object may be shared with other models; ours is changed here, once, and by no call afterwards.
        config = copy.deepcopy(config)
        # `is_causal: false` is how sentence-transformers opens a decoder as an encoder. It picks our default mode and
        # then goes: the library would otherwise write to the config during every forward, which is not thread-safe.
        opened_as_encoder = config.__dict__.pop("is_causal", True) is False
        settings = MagnetSettings.from_dict(getattr(config, "magnet", None) or {})
        opened_as_encoder |= make_causal(config, settings, opened_as_encoder=opened_as_encoder)
        config.magnet = settings.to_dict()
        chooses_attention = config._attn_implementation is not None
        super().__init__(config, *args, **kwargs)
        if not chooses_attention and self.config._attn_implementation == "sdpa":
            self.config._attn_implementation = DEFAULT_ATTENTION
        self._tokenizer_source = TokenizerSource(config._name_or_path)
        self._probed = set()
        self.default_mode: AttentionMode = "bidirectional" if opened_as_encoder else "causal"
        # An Auto class registers itself with a remote class just before it opens a model of it.
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
        mode: AttentionMode | Sequence[AttentionMode] | None = None,
        segment_ids: torch.LongTensor | None = None,
        target_ids: torch.LongTensor | None = None,
        num_targets: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MagnetCausalLMOutput | MagnetModelOutput:
        """The parent's forward with a mode. What is not listed here is the parent's.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, key_length)`, *optional*):
                1 for real tokens and 0 for padding, on either side; cached tokens included.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Outside causal mode they default to counting real tokens; in causal mode to the parent's choice.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                As in transformers: the last so many positions (0: all), a 1-D tensor of positions, or a boolean
                `(batch_size, sequence_length)` mask, for which the logits come as `(num_true, vocab_size)` and the
                head runs nowhere else.
            mode (`str` or sequence of `str`, *optional*):
                One for the call, or one for each row: then each mode runs once, on its rows, without a cache.
                `"causal"`: bit for bit the parent. `"bidirectional"`: every token sees every token. `"infill"`:
                context tokens see the context, span tokens see the context and their own span's past. Defaults to
                causal; in a model opened as an encoder (`is_causal: false`, as sentence-transformers does) to
                bidirectional, and then without logits. An adapter can be bound to modes: `set_adapter_modes`.
                Transformers' own `is_causal` says it, too: `True` for causal, `False` for bidirectional.
            segment_ids (`torch.LongTensor` of shape `(batch_size, key_length)`, *optional*):
                For infill mode only, and needed there: 0 for context, k >= 1 for the k-th span; cached tokens
                included.
            target_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                What each position is to predict, already shifted, or -100; `(k, batch_size, sequence_length)` where
                a position may have k targets. Instead of logits there are then `token_losses`, for which the head
                runs on a few positions at a time.
            num_targets (`int`, *optional*):
                How many targets are set, or an upper limit. Without it a GPU has to be waited for.

        Returns:
            `MagnetCausalLMOutput`: with `logits` or `token_losses`, and `last_hidden_state`. Of a model that
            `AutoModel` opened, the same fields with the states first: `MagnetModelOutput`.

        Raises:
            ValueError: unknown mode, an `is_causal` or segment ids that do not fit it, labels that their predictors
                see, or a back-end that cannot do it.
        """
        mode = mode_of_call(mode, kwargs.pop("is_causal", None))
        arguments: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "segment_ids": segment_ids,
            "target_ids": target_ids,
            "num_targets": num_targets,
            **kwargs,
        }
        if mode is not None and not isinstance(mode, str):
            return self._output_class(**forward_rows(self, [str(one) for one in mode], arguments))  # type: ignore[misc]
        wants_logits = mode is not None or labels is not None or self.default_mode == "causal"
        wants_logits = wants_logits and (target_ids is None or labels is not None)
        chosen = self.default_mode if mode is None else mode
        check_mode(chosen)
        with self._adapters_for(chosen):
            return self._forward_in_mode(chosen, wants_logits=wants_logits, **arguments)

    def _forward_in_mode(
        self,
        mode: AttentionMode,
        *,
        wants_logits: bool,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Any | None,
        inputs_embeds: torch.Tensor | None,
        labels: torch.LongTensor | None,
        use_cache: bool | None,
        logits_to_keep: int | torch.Tensor,
        segment_ids: torch.LongTensor | None,
        target_ids: torch.LongTensor | None,
        num_targets: int | None,
        **kwargs: Any,
    ) -> MagnetCausalLMOutput | MagnetModelOutput:
        """The whole batch in one mode."""
        if mode == "causal":
            check_segment_ids(segment_ids, mode=mode, expected_shape=(0, 0))
        else:
            given_ids = input_ids
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
                input_ids = None
            past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
            if past_key_values is not None and past_key_values.is_compileable:
                raise ValueError(
                    f"`past_key_values` is a {type(past_key_values).__name__}, whose free slots mode={mode!r} would "
                    "attend to. Pass a DynamicCache."
                )
            if position_ids is not None:
                check_position_ids(position_ids, expected_shape=(inputs_embeds.shape[0], inputs_embeds.shape[1]))
            elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
                position_ids = positions_from_mask(attention_mask, query_length=inputs_embeds.shape[1])
            if position_ids is None:
                position_ids = past_length + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            # A cache costs memory that a single bidirectional pass never reads: only on request.
            use_cache = past_key_values is not None if use_cache is None else use_cache
            padding_mask = attention_mask
            attention_mask = self._prepare_4d_causal_attention_mask(
                padding_mask,
                inputs_embeds.shape[:2],
                inputs_embeds,
                past_length,
                position_ids=position_ids,
                segment_ids=segment_ids,
                mode=mode,
            )
            if labels is not None:
                check_labels_are_hidden(
                    labels,
                    mode=mode,
                    input_ids=given_ids,
                    inputs_embeds=inputs_embeds,
                    embed=self.get_input_embeddings(),
                    shift_labels=kwargs.get("shift_labels"),
                    attention_mask=padding_mask,
                    segment_ids=segment_ids,
                    mask_token_id=self.config.magnet["mask_token_id"],
                )
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **({} if mode == "causal" else {MASK_IS_OURS: True}),
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (B, S, H)
        logits = self._project(slice_logits_to_keep(hidden_states, logits_to_keep)) if wants_logits else None
        targets: Any = None if target_ids is None else self._token_losses(hidden_states, target_ids, num_targets)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return self._output_class(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            last_hidden_state=hidden_states,
            token_losses=None if targets is None else targets.losses,
            token_hits=None if targets is None else targets.hits,
        )

    def _token_losses(
        self, hidden_states: torch.Tensor, target_ids: torch.Tensor, num_targets: int | None
    ) -> TokenLosses:
        """Cross entropy of the targets, by the shortest way that this family's head allows."""
        is_plain = type(self)._project is StatesMixin._project
        return token_losses(
            hidden_states,
            target_ids,
            head=self.get_output_embeddings(),
            vocab_size=self.config.vocab_size,
            project=None if is_plain else self._project,
            softcap=self._softcap() if is_plain else None,
            num_targets=num_targets,
        )

    def _prepare_4d_causal_attention_mask(
        self,
        attention_mask: torch.Tensor | None,
        input_shape: tuple[int, int] | torch.Size,
        inputs_embeds: torch.Tensor,
        past_key_values_length: int,
        sliding_window: int | None = None,
        *,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        mode: AttentionMode = "causal",
    ) -> Any:
        """The mask of a mode, in the form the active attention back-end needs.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, key_length)`, *optional*): Zero for padding.
            input_shape (`tuple[int, int]`): `(batch_size, query_length)` of this call.
            inputs_embeds (`torch.Tensor`): Gives dtype and device.
            past_key_values_length (`int`): Tokens already in the cache.
            sliding_window (`int`, *optional*): Kept for the classic signature; the config says which layers have one.
            position_ids (`torch.LongTensor` of shape `(batch_size or 1, query_length)`, *optional*): For layers with
                a window, which reaches as far ahead as it reaches back.
            segment_ids (`torch.LongTensor` of shape `(batch_size, key_length)`, *optional*): In infill mode.
            mode (`str`): In causal mode the given mask comes back unchanged: the parent knows what to do with it.

        Returns:
            Eager: floats, 0 or the dtype's minimum; SDPA: booleans; both `(batch_size, 1, query_length, key_length)`.
            Flex attention: a `BlockMask`. A decoder with two kinds of layers: a `dict` with one for each kind.

        Raises:
            ValueError: shapes that do not agree, a back-end without a rendering, layers that the modes are not
                defined for, or a cache in a model with windows, which does not know the positions of its tokens.
        """
        check_mode(mode)
        batch_size, query_length = input_shape
        key_length = past_key_values_length + query_length
        check_segment_ids(segment_ids, mode=mode, expected_shape=(batch_size, key_length))
        if mode == "causal":
            return attention_mask
        implementation = self.config._attn_implementation
        if implementation not in (*MASKED_BACKENDS, DEFAULT_ATTENTION):
            raise ValueError(
                f"Attention back-end {implementation!r} cannot do mode={mode!r}: it takes no such mask. Load the "
                f"model with attn_implementation set to one of {', '.join(MASKED_BACKENDS)}."
            )
        if sliding_window is not None:
            raise ValueError(f"`sliding_window={sliding_window}` is not supported with mode={mode!r}. Pass None.")
        windows = layer_windows(self.config)
        if past_key_values_length and any(window is not None for window in windows.values()):
            raise ValueError(
                f"A cache of {past_key_values_length} tokens was given to a model with sliding windows; mode={mode!r} "
                "needs the positions of all tokens for them. Pass all tokens at once, or use `model.infill`."
            )
        if implementation == "flex_attention" and self.training and inputs_embeds.device.type == "cpu":
            raise ValueError(
                "flex_attention has no backward pass on the CPU. Train with attn_implementation='sdpa', or call "
                "`model.eval()` for inference."
            )
        if attention_mask is not None:
            is_tensor = isinstance(attention_mask, torch.Tensor)
            given = f"has shape {tuple(attention_mask.shape)}" if is_tensor else f"is {type(attention_mask).__name__}"
            if not is_tensor or attention_mask.shape != (batch_size, key_length):
                raise ValueError(
                    f"`attention_mask` {given}; mode={mode!r} expects a tensor of shape {(batch_size, key_length)}, "
                    "cached tokens included. Pass the 2-D padding mask."
                )
        if segment_ids is None:
            segment_ids = torch.zeros(batch_size, key_length, dtype=torch.long, device=inputs_embeds.device)
        pattern = attention_pattern(segment_ids, query_length=query_length, attention_mask=attention_mask)
        if position_ids is None:
            position_ids = torch.arange(key_length, device=inputs_embeds.device)[None, past_key_values_length:]
        return render_for_layers(
            pattern,
            windows=windows,
            query_positions=position_ids,
            key_positions=position_ids,
            implementation=implementation,
            dtype=inputs_embeds.dtype,
        )

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The parent's inputs; generation is causal, also in a model that was opened as an encoder.

        `inputs_embeds` is named because `generate` looks for it in this signature.
        """
        mode = mode_of_call(kwargs.pop("mode", None), kwargs.pop("is_causal", None))
        if mode not in (None, "causal") or kwargs.get("segment_ids") is not None:
            raise ValueError(
                f"`generate` is left to right; it was given mode={mode!r} or segment ids. "
                "Use `model.infill` to fill a gap and `model.encode` for embeddings."
            )
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return {**inputs, "mode": "causal"}


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


__all__ = ["MagnetCausalLMOutput", "MagnetLlamaForCausalLM", "MagnetMixin", "MagnetModelOutput"]
