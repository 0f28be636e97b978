"""Every rule of who sees whom, and its form for each attention back-end.

Pure functions of tensors, but for `forward_mixed_modes`, which calls the model once for each mode.

Shape legend: B batch, Q queries of this call, KV keys seen so far (cached ones included).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .attention_magnet import DEFAULT_ATTENTION, product_dtype, takes_float_masks
from .configuration_magnet import MODES, AttentionMode, MagnetSettings, check_mode
from .losses_magnet import IGNORE_INDEX

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


MASKED_BACKENDS = ("eager", "sdpa", "flex_attention")
# These skip the blocks that a mask leaves out, so that packed rows cost no more than separate ones.
PACKED_BACKENDS = ("flex_attention",)


def mode_of_call(mode: Any, is_causal: bool | None) -> Any:
    """Return the mode that a call asks for, by our name or by transformers' `is_causal` (`False`: bidirectional).

    Raises:
        ValueError: `is_causal` is not a boolean, or contradicts the mode.

    Example:

        >>> mode_of_call(None, False), mode_of_call("causal", True), mode_of_call("infill", None)
        ('bidirectional', 'causal', 'infill')
    """
    if is_causal is None:
        return mode
    if not isinstance(is_causal, bool):
        raise ValueError(f"`is_causal` is {is_causal!r}; expected True, False or None. Or pass `mode`.")
    meant: AttentionMode = "causal" if is_causal else "bidirectional"
    given = [] if mode is None else [mode] if isinstance(mode, str) else list(mode)
    if any(one != meant for one in given):
        raise ValueError(
            f"`mode={mode!r}` and `is_causal={is_causal}`, which means mode={meant!r}, contradict each other. Pass "
            "one of them."
        )
    return meant if mode is None else mode


def check_segment_ids(segment_ids: torch.Tensor | None, *, mode: str, expected_shape: tuple[int, int]) -> None:
    """Refuse segment ids that do not fit the mode, or are not a legal table of shape `expected_shape`, `(B, KV)`."""
    if mode != "infill":
        if segment_ids is not None:
            raise ValueError(
                f"`segment_ids` were given with mode={mode!r}, which has no spans. "
                'Pass mode="infill", or leave `segment_ids` out.'
            )
        return
    if segment_ids is None:
        raise ValueError(
            'mode="infill" needs `segment_ids` of shape (batch_size, sequence_length): 0 for context, k >= 1 for the '
            'k-th span. Pass them, or use mode="bidirectional" for text without a span.'
        )
    if not isinstance(segment_ids, torch.Tensor):
        raise ValueError(f"`segment_ids` is {type(segment_ids).__name__}; expected a tensor. Use `torch.tensor`.")
    if segment_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8):
        raise ValueError(
            f"`segment_ids` have dtype {segment_ids.dtype}; expected signed integers. Use `segment_ids.long()`."
        )
    if tuple(segment_ids.shape) != tuple(expected_shape):
        raise ValueError(
            f"`segment_ids` have shape {tuple(segment_ids.shape)}; expected {tuple(expected_shape)}, one id per token "
            "seen so far (tokens in the cache included). Pass ids for every token."
        )
    # Reading a value back would break a compiled graph, and make the host wait for an accelerator in every step; there
    # the caller vouches for the sign. (A negative id is a span like any other to the mask.)
    is_readable = segment_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable and segment_ids.numel() and int(segment_ids.min()) < 0:
        raise ValueError(
            f"`segment_ids` hold the negative value {int(segment_ids.min())}. Expected 0 for context and k >= 1 for "
            "the k-th span; mark padding with `attention_mask`."
        )


def check_position_ids(position_ids: Any, *, expected_shape: tuple[int, int]) -> None:
    """Refuse positions that are not a tensor of shape `expected_shape`, `(B, Q)`, or `(1, Q)`."""
    batch_size, query_length = expected_shape
    is_tensor = isinstance(position_ids, torch.Tensor)
    given = f"has shape {tuple(position_ids.shape)}" if is_tensor else f"is {type(position_ids).__name__}"
    if not is_tensor or tuple(position_ids.shape) not in ((batch_size, query_length), (1, query_length)):
        raise ValueError(
            f"`position_ids` {given}; expected a tensor of shape {(batch_size, query_length)} or {(1, query_length)}, "
            "one position per token."
        )


def attention_pattern(
    segment_ids: torch.Tensor, *, query_length: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Let every token see the context, and span tokens also their own span up to themselves.

    Args:
        segment_ids (`torch.LongTensor` of shape `(B, KV)`): 0 for a context token, k >= 1 for the k-th span.
        query_length (`int`): Q; the queries are the last Q of the KV tokens.
        attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*): Zero for padding, which only sees and is only
            seen by itself, so that no row of the softmax is empty.

    Returns:
        `torch.BoolTensor` of shape `(B, 1, Q, KV)`: true where the query may attend to the key.

    Source: Khosla et al. 2025 (https://huggingface.co/papers/2501.08648), Figure 2.

    Example, with a context token written `c` and the spans by their numbers:

        >>> import torch
        >>> pattern = attention_pattern(torch.tensor([[0, 1, 1, 0, 2]]), query_length=5)
        >>> for name, row in zip("c11c2", pattern[0, 0].tolist()):
        ...     print(name, "".join("x" if cell else "." for cell in row))
        c x..x.
        1 xx.x.
        1 xxxx.
        c x..x.
        2 x..xx
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    queries = index[segment_ids.shape[1] - query_length :]
    query_segments = segment_ids[:, segment_ids.shape[1] - query_length :]
    # In place: a pattern of long rows is too large to be copied.
    allowed = query_segments[:, :, None] == segment_ids[:, None, :]  # (B, Q, KV)
    allowed &= index <= queries[:, None]  # its own past
    allowed |= (segment_ids == 0)[:, None, :]
    if attention_mask is not None:
        allowed &= attention_mask.bool()[:, None, :]
        allowed |= index == queries[:, None]
    return allowed[:, None]  # (B, 1, Q, KV)


def render_pattern(allowed: torch.Tensor, *, implementation: str, dtype: torch.dtype) -> "torch.Tensor | BlockMask":
    """Render a boolean pattern `(B, 1, Q, KV)` for a back-end.

    Eager *adds* its mask, so that it gets 0 and the minimum of `dtype`; SDPA gets booleans, flex attention a block
    mask, and the default of `attention_magnet.py` one of the first two.
    """
    if implementation == DEFAULT_ATTENTION:
        if not takes_float_masks(dtype, allowed.device):
            return allowed
        implementation, dtype = "eager", product_dtype(dtype, allowed.device)
    if implementation == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )
    if implementation == "sdpa":
        return allowed
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(
        batch_idx: torch.Tensor, head_idx: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        return allowed[batch_idx, 0, q_idx, kv_idx]

    batch_size, _, query_length, key_length = allowed.shape
    return create_block_mask(may_attend, batch_size, None, query_length, key_length, device=str(allowed.device))


def layer_windows(config: Any) -> dict[str, int | None]:
    """Return how far the layers of a decoder see to either side, by kind of layer.

    Returns:
        `dict`: kind of layer to window in positions, `None` for no limit; one key `""` where all layers are alike.

    Raises:
        ValueError: a kind of layer that these modes are not defined for.

    Example:

        >>> from transformers import MistralConfig, Qwen3Config
        >>> layer_windows(MistralConfig(sliding_window=64)), layer_windows(Qwen3Config())
        ({'': 64}, {'': None})
    """
    kinds = set(_own(config, "layer_types") or ())
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"This {config.model_type} has layers of {unknown}; bidirectional and infill mode are only defined for "
            "full and sliding attention. Choose another base model."
        )
    window = _own(config, "sliding_window")
    trained = MagnetSettings.of(config).bidirectional_window
    if window is not None and trained is not None:
        window = trained
    elif window is not None and getattr(config, "use_bidirectional_attention", False):
        window -= 1  # the library's masks of such a config leave the last position out
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    return {"": None if kinds else window}


def _own(config: Any, name: str) -> Any:
    """Return a field that a config's class has; decoders of the library do not read other fields of a file."""
    kind = type(config)
    is_read = hasattr(kind, name) or not kind.__module__.startswith("transformers.")
    return getattr(config, name, None) if is_read else None


def limit_to_window(
    allowed: torch.Tensor, *, query_positions: torch.Tensor, key_positions: torch.Tensor, window: int
) -> torch.Tensor:
    """Let the queries of a pattern see at most `window` positions to either side.

    In causal mode a family's window looks back and counts the token itself; transformers turns it into one to both
    sides in this way, and so do the stock classes that sentence-transformers opens.
    """
    queries, keys = query_positions[:, None, :, None], key_positions[:, None, None, :]
    # Bounds are compared, one byte a pair: distances would take eight and their absolute values as many.
    # A padding token that sees itself alone must not lose even that: its distance to itself is 0.
    near = allowed & (keys >= queries - window)
    near &= keys <= queries + window
    return near


def layer_masks(
    config: Any,
    allowed: torch.Tensor,
    *,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    dtype: torch.dtype,
) -> Any:
    """Render what a decoder is handed for a pattern.

    Args:
        config (`PreTrainedConfig`): Says which windows the layers have, and the attention back-end.
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        query_positions, key_positions (`torch.LongTensor` of shape `(B, Q)` and `(B, KV)`): For the windows.
        dtype (`torch.dtype`): Of the hidden states.
    """
    return render_for_layers(
        allowed,
        windows=layer_windows(config),
        query_positions=query_positions,
        key_positions=key_positions,
        implementation=str(config._attn_implementation),
        dtype=dtype,
    )


def render_for_layers(
    allowed: torch.Tensor,
    *,
    windows: dict[str, int | None],
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """Render one mask, or a `dict` with one for each kind of layers: see `layer_windows` and `render_pattern`."""
    rendered: dict[int | None, Any] = {}  # kinds with the same window share one
    for window in windows.values():
        if window not in rendered:
            pattern = allowed
            if window is not None:
                pattern = limit_to_window(
                    allowed, query_positions=query_positions, key_positions=key_positions, window=window
                )
            rendered[window] = render_pattern(pattern, implementation=implementation, dtype=dtype)
    masks = {kind: rendered[window] for kind, window in windows.items()}
    return masks.get("", masks)


def mask_of_call(
    config: Any,
    *,
    mode: AttentionMode,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    input_shape: tuple[int, int],
    past_length: int,
    inputs_embeds: torch.Tensor,
    is_training: bool,
) -> Any:
    """Check that a bidirectional or infill forward can be masked, and render its mask: see `layer_masks`.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*): Zero for padding.
        segment_ids (`torch.LongTensor` of shape `(B, KV)`, *optional*): In infill mode.
        position_ids (`torch.LongTensor` of shape `(B or 1, Q)`, *optional*): For layers with a window.
        input_shape (`tuple[int, int]`): `(B, Q)`.
        inputs_embeds (`torch.Tensor`): Gives dtype and device.

    Raises:
        ValueError: shapes that do not agree, or a back-end, layers or a cache that the mode is not defined for.
    """
    (batch_size, query_length), device = input_shape, inputs_embeds.device
    key_length = past_length + query_length
    check_can_mask(config, mode=mode, past_length=past_length, is_training=is_training, device=device)
    if attention_mask is not None:
        is_tensor = isinstance(attention_mask, torch.Tensor)
        given = f"has shape {tuple(attention_mask.shape)}" if is_tensor else f"is {type(attention_mask).__name__}"
        if not is_tensor or attention_mask.shape != (batch_size, key_length):
            raise ValueError(
                f"`attention_mask` {given}; mode={mode!r} expects a tensor of shape {(batch_size, key_length)}, "
                "cached tokens included. Pass the 2-D padding mask."
            )
    if segment_ids is None:
        segment_ids = torch.zeros(batch_size, key_length, dtype=torch.long, device=device)
    allowed = attention_pattern(segment_ids, query_length=query_length, attention_mask=attention_mask)
    if position_ids is None:
        position_ids = torch.arange(key_length, device=device)[None, past_length:]
    return layer_masks(
        config, allowed, query_positions=position_ids, key_positions=position_ids, dtype=inputs_embeds.dtype
    )


def check_can_mask(
    config: Any, *, mode: AttentionMode, past_length: int, is_training: bool, device: torch.device
) -> None:
    """Refuse a back-end or a cache with which a mode other than causal cannot run."""
    implementation = config._attn_implementation
    if implementation not in (*MASKED_BACKENDS, DEFAULT_ATTENTION):
        raise ValueError(
            f"Attention back-end {implementation!r} cannot do mode={mode!r}: it takes no such mask. Load the "
            f"model with attn_implementation set to one of {', '.join(MASKED_BACKENDS)}."
        )
    if past_length and any(window is not None for window in layer_windows(config).values()):
        raise ValueError(
            f"A cache of {past_length} tokens was given to a model with sliding windows; mode={mode!r} needs the "
            "positions of all tokens for them. Pass all tokens at once, or use `model.infill`."
        )
    if implementation == "flex_attention" and is_training and device.type == "cpu":
        raise ValueError(
            "flex_attention has no backward pass on the CPU. Train with attn_implementation='sdpa', or call "
            "`model.eval()` for inference."
        )


def packed_pattern(row_ids: torch.Tensor) -> torch.Tensor:
    """Let packed rows `(1, L)`, given by the number of each token's row, see only themselves: `(1, 1, L, L)`."""
    return row_ids[:, None, :, None] == row_ids[:, None, None, :]


def positions_from_mask(attention_mask: torch.Tensor, *, query_length: int) -> torch.Tensor:
    """Count real tokens only, so that padding on either side does not move a text.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, KV)`): Nonzero for real tokens.
        query_length (`int`): Q; the queries are the last Q tokens.

    Example:

        >>> import torch
        >>> positions_from_mask(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]), query_length=5)
        tensor([[0, 0, 0, 1, 2],
                [0, 1, 2, 3, 3]])
    """
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, positions.shape[1] - query_length :]


def check_labels_are_hidden(
    labels: torch.Tensor,
    *,
    mode: AttentionMode,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    embed: Any,
    shift_labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    mask_token_id: int | None = None,
) -> None:
    """Refuse labels of tokens that their own predictors read in the input.

    The logits of position i predict token i + 1. Outside causal mode every token sees the context, so that a context
    token with a label must be hidden in the input, by a mask token or another one. Up to half of those may be as in
    the input: BERT's corruption keeps a few of the tokens that it picks. Span tokens are not seen by what predicts
    them.
    """
    # Reading a value back would break a compiled graph.
    if mode == "causal" or torch.compiler.is_compiling():
        return
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    if any(table is not None and table.shape != given.shape[:2] for table in (labels, shift_labels)):
        return  # the loss says what is wrong with them
    targets = (labels[:, 1:] if shift_labels is None else shift_labels[:, :-1]).to(given.device)  # (B, S - 1)
    is_open = targets != IGNORE_INDEX
    for table, is_visible in ((segment_ids, False), (attention_mask, True)):
        if table is not None:
            is_open = is_open & (table[:, 1 - given.shape[1] :].bool() == is_visible).to(given.device)
    if input_ids is not None:
        is_seen = input_ids[:, 1:] == targets
        if mask_token_id is not None:
            is_seen = is_seen & (input_ids[:, 1:] != mask_token_id)
    else:
        with torch.no_grad():
            is_seen = (embed(targets.clamp(min=0)) == given[:, 1:]).all(-1)
    num_open, num_seen = int(is_open.sum()), int((is_seen & is_open).sum())
    if num_seen and 2 * num_seen >= num_open:
        raise ValueError(
            f"`labels` ask for {num_seen} tokens that mode={mode!r} shows to what predicts them: position i sees "
            "token i + 1, so the loss would only measure copying. For the loss from left to right pass "
            'mode="causal" (`is_causal=True`). For masked tokens put the mask token into `input_ids` and give labels, '
            'or `target_ids`, only to those positions. For a fill pass mode="infill" with its `segment_ids` and -100 '
            "for every context token."
        )


# Arguments with a row for each row of the batch.
PER_ROW = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "segment_ids", "labels")
# What a mixture cannot return, because it would have to be put together from parts of different shapes.
NOT_MIXED = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")


def forward_mixed_modes(model: Any, modes: Sequence[AttentionMode], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run each mode on its rows and put the rows back in order.

    A row's output is that of a batch of the rows of its mode, bit for bit.

    Args:
        model: The model; its forward is called once for each mode.
        modes (sequence of `str`): One for each row.
        arguments (`dict`): The other arguments of its forward. Segment ids of rows in other modes than infill are 0.

    Returns:
        `dict`: `logits` `(B, kept, V)` and `last_hidden_state` `(B, S, H)`.

    Raises:
        ValueError: not one mode for each row, or an argument that rows of different modes cannot share.
    """
    for mode in modes:
        check_mode(mode)
    named = [arguments[name] for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None]
    if not named:
        raise ValueError("Neither `input_ids` nor `inputs_embeds` was given. Pass one of them.")
    given = named[0]
    if len(modes) != len(given):
        raise ValueError(f"`mode` has {len(modes)} entries for a batch of {len(given)} rows. Pass one for each row.")
    unfit = [name for name in NOT_MIXED if arguments.get(name) not in (None, False)]
    unfit += [] if arguments.get("target_ids") is None else ["target_ids"]
    keep = arguments.get("logits_to_keep")
    if unfit or arguments.get("labels") is not None or (isinstance(keep, torch.Tensor) and keep.dtype == torch.bool):
        unfit += [name for name in ("labels", "logits_to_keep") if isinstance(arguments.get(name), torch.Tensor)]
        raise ValueError(f"A batch of mixed modes takes no {', '.join(unfit)}. Call the model once for each mode.")
    segments = arguments.get("segment_ids")
    if segments is not None and (not isinstance(segments, torch.Tensor) or segments.dim() != 2):
        shape = f"of shape {tuple(segments.shape)}" if isinstance(segments, torch.Tensor) else type(segments).__name__
        raise ValueError(f"`segment_ids` is {shape}; expected a tensor of shape (batch_size, key_length).")
    if segments is not None and len(segments) != len(modes):
        raise ValueError(f"`segment_ids` has {len(segments)} rows for a batch of {len(modes)}. Pass one for each.")
    others = torch.tensor([mode != "infill" for mode in modes], device=given.device)
    # Reading a value back would break a compiled graph; there the caller vouches for it.
    if segments is not None and not torch.compiler.is_compiling() and bool(segments[others].any()):
        raise ValueError("`segment_ids` has spans in rows that are not in infill mode. Set those rows to 0.")
    logits: Any = None
    states: Any = None
    for mode in [mode for mode in MODES if mode in modes]:
        rows = torch.tensor([index for index, other in enumerate(modes) if other == mode], device=given.device)
        part = dict(arguments)
        for name in PER_ROW:
            if part.get(name) is not None and len(part[name]) == len(modes):
                part[name] = part[name][rows]
        part["segment_ids"] = part["segment_ids"] if mode == "infill" else None
        output = model(**part, mode=mode)
        if states is None:
            states = output.last_hidden_state.new_empty(len(modes), *output.last_hidden_state.shape[1:])
            logits = output.logits.new_empty(len(modes), *output.logits.shape[1:])
        # Not in place: the parts may want their gradients.
        states = states.index_copy(0, rows, output.last_hidden_state)
        logits = logits.index_copy(0, rows, output.logits)
    return {"logits": logits, "last_hidden_state": states}


class StepMasks:
    """The masks of decoding steps, in which all spans take one token each: `(B, 1, K, C + tokens so far)`.

    A span sees the context, and its own token of each step so far.

    Args:
        config (`PreTrainedConfig`): As in `layer_masks`.
        visible (`torch.BoolTensor` of shape `(B, C)`): Context tokens that spans may attend to.
        context_positions (`torch.LongTensor` of shape `(B, C)`): Their positions.
        starts (`torch.LongTensor` of shape `(B, K)`): Position of the first token of each of K spans.
        num_steps (`int`): T.
        dtype (`torch.dtype`): Of the hidden states.
    """

    def __init__(
        self,
        config: Any,
        *,
        visible: torch.Tensor,
        context_positions: torch.Tensor,
        starts: torch.Tensor,
        num_steps: int,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.dtype, self.starts = config, dtype, starts
        (batch_size, self.context), num_spans = visible.shape, starts.shape[1]
        own = torch.eye(num_spans, dtype=torch.bool, device=visible.device).repeat(1, num_steps)  # (K, T * K)
        rows = visible[:, None].expand(-1, num_spans, -1)  # (B, K, C)
        self.allowed = torch.cat([rows, own.expand(batch_size, -1, -1)], dim=-1)[:, None]  # (B, 1, K, C + T * K)
        steps = torch.arange(num_steps, device=visible.device)
        fed = (starts[:, None, :] + steps[:, None]).flatten(1)  # (B, T * K)
        self.key_positions = torch.cat([context_positions, fed], dim=1)  # (B, C + T * K)
        self.windows = layer_windows(config)
        if any(self.windows.values()):
            farthest = int(self.key_positions.max())  # from position 0; read once for all steps
            reaches_all = {kind for kind, window in self.windows.items() if window is None or window >= farthest}
            self.windows = {kind: None if kind in reaches_all else self.windows[kind] for kind in self.windows}
        # Rendered once, to be cut; not block masks, which cannot be cut, and not windows, which move.
        renders_once = config._attn_implementation not in PACKED_BACKENDS and not any(self.windows.values())
        self.rendered = self._render(self.allowed, starts, self.key_positions) if renders_once else None

    def at(self, step: int, *, num_rows: int) -> Any:
        """Return the masks for token `step` of the spans in the first rows, over the keys seen by then."""
        seen = self.context + (step + 1) * self.starts.shape[1]
        if isinstance(self.rendered, dict):
            return {kind: mask[:num_rows, :, :, :seen] for kind, mask in self.rendered.items()}
        if self.rendered is not None:
            return self.rendered[:num_rows, :, :, :seen]
        return self._render(
            self.allowed[:num_rows, :, :, :seen], self.starts[:num_rows] + step, self.key_positions[:num_rows, :seen]
        )

    def _render(self, allowed: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor) -> Any:
        return render_for_layers(
            allowed,
            windows=self.windows,
            query_positions=query_positions,
            key_positions=key_positions,
            implementation=str(self.config._attn_implementation),
            dtype=self.dtype,
        )


__all__ = [
    "AttentionMode",
    "MASKED_BACKENDS",
    "MODES",
    "PACKED_BACKENDS",
    "StepMasks",
    "attention_pattern",
    "check_labels_are_hidden",
    "check_mode",
    "check_position_ids",
    "check_segment_ids",
    "forward_mixed_modes",
    "layer_masks",
    "layer_windows",
    "limit_to_window",
    "mask_of_call",
    "mode_of_call",
    "packed_pattern",
    "positions_from_mask",
    "render_for_layers",
    "render_pattern",
]
