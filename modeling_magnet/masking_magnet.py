"""Segment ids -> who may attend to whom -> the mask each attention back-end needs. Pure functions, no model.

Shape legend: B batch, Q queries of this call, KV keys seen so far (cached ones included).
"""

from typing import TYPE_CHECKING, Any, Literal

import torch

from .attention_magnet import DEFAULT_ATTENTION, product_dtype, takes_float_masks

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


AttentionMode = Literal["causal", "bidirectional", "infill"]
MODES: tuple[AttentionMode, ...] = ("causal", "bidirectional", "infill")
MASKED_BACKENDS = ("eager", "sdpa", "flex_attention")
# These skip the blocks that a mask leaves out, so that rows laid end to end cost no more than rows apart.
PACKED_BACKENDS = ("flex_attention",)


def check_mode(mode: str) -> None:
    """Refuse a mode that does not exist.

    Raises:
        ValueError: naming the three modes.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}. Expected one of {', '.join(map(repr, MODES))}.")


def mode_of_call(mode: Any, is_causal: bool | None) -> Any:
    """The mode that a call asks for, by our name or by transformers' `is_causal`.

    Args:
        mode (`str` or sequence of `str`, *optional*): One for the call, or one for each row.
        is_causal (`bool`, *optional*): `True` for causal, `False` for bidirectional.

    Returns:
        `mode`, or what `is_causal` says in its place; `None` where neither was given.

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
    """Refuse segment ids that do not fit the mode, or that are no legal table of the tokens.

    Args:
        segment_ids (`torch.LongTensor` of shape `(B, KV)`, *optional*):
            0 for a context token, k >= 1 for a token of the k-th span.
        mode (`str`): The mode of the call.
        expected_shape (`tuple[int, int]`): `(B, KV)`, the cached tokens included.

    Raises:
        ValueError: missing in infill mode, given in another mode, no tensor, wrong shape, wrong dtype, or on a CPU
            negative.
    """
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
    """Refuse positions that do not stand for the tokens of a call.

    Args:
        position_ids (`torch.LongTensor` of shape `(B, Q)` or `(1, Q)`): Of the tokens.
        expected_shape (`tuple[int, int]`): `(B, Q)`.

    Raises:
        ValueError: no tensor, or of another shape.
    """
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
    """Every token sees the context; a span token also sees its own span, up to itself.

    Args:
        segment_ids (`torch.LongTensor` of shape `(B, KV)`):
            0 for a context token, k >= 1 for a token of the k-th span, for every token seen so far.
        query_length (`int`): Q; the queries are the last Q of the KV tokens.
        attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*):
            Nonzero for real tokens, zero for padding. A padding token is seen by itself alone, so that no row of
            the softmax is empty.

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
    # In place: long rows leave no room for copies of so large a pattern.
    allowed = query_segments[:, :, None] == segment_ids[:, None, :]  # (B, Q, KV)
    allowed &= index <= queries[:, None]  # its own past
    allowed |= (segment_ids == 0)[:, None, :]
    if attention_mask is not None:
        allowed &= attention_mask.bool()[:, None, :]
        allowed |= index == queries[:, None]
    return allowed[:, None]  # (B, 1, Q, KV)


def render_pattern(allowed: torch.Tensor, *, implementation: str, dtype: torch.dtype) -> "torch.Tensor | BlockMask":
    """What the back-end wants to be handed for a boolean pattern.

    Args:
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        implementation (`str`): `eager` (it *adds* the mask, so it gets 0 and the dtype's minimum), `sdpa` (boolean),
            `flex_attention` (a block mask), or the default of `attention_magnet.py` (as one of the first two).
        dtype (`torch.dtype`): Floating dtype of the hidden states, for the additive mask.

    Returns:
        `torch.Tensor` of shape `(B, 1, Q, KV)`, or `BlockMask`.
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
    """How far the layers of a decoder see to either side, by the kinds of layers it has.

    Args:
        config (`PreTrainedConfig`): Of any decoder.

    Returns:
        `dict`: kind of layer to window in positions, `None` for no limit; the one key `""` where all layers are alike.

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
            f"This {config.model_type} has layers of {unknown}; bidirectional and infill mode are defined for full "
            "and sliding attention alone. Choose another base model."
        )
    window = _own(config, "sliding_window")
    trained = (getattr(config, "magnet", None) or {}).get("bidirectional_window")
    if window is not None and trained is not None:
        window = trained
    elif window is not None and getattr(config, "use_bidirectional_attention", False):
        window -= 1  # the library's masks of such a config leave the last position out
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    return {"": None if kinds else window}


def _own(config: Any, name: str) -> Any:
    """A field that a config's class has; what a file holds beyond them, the library's decoders do not read."""
    kind = type(config)
    is_read = hasattr(kind, name) or not kind.__module__.startswith("transformers.")
    return getattr(config, name, None) if is_read else None


def limit_to_window(
    allowed: torch.Tensor, *, query_positions: torch.Tensor, key_positions: torch.Tensor, window: int
) -> torch.Tensor:
    """A pattern whose queries see at most `window` positions to either side.

    That is how transformers turns a family's window, which in causal mode looks back and counts the token itself, into
    one to both sides; so do the stock classes that sentence-transformers opens.

    Args:
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        query_positions (`torch.LongTensor` of shape `(B, Q)`): Positions of the queries.
        key_positions (`torch.LongTensor` of shape `(B, KV)`): Positions of the keys.
        window (`int`): As the config has it.
    """
    queries, keys = query_positions[:, None, :, None], key_positions[:, None, None, :]
    # Bounds are compared, one byte a pair: distances would take eight and their absolute values as many.
    # A padding token that sees itself alone must not lose even that: its distance to itself is 0.
    near = allowed & (keys >= queries - window)
    near &= keys <= queries + window
    return near


def render_for_layers(
    allowed: torch.Tensor,
    *,
    windows: dict[str, int | None],
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """What a decoder is handed: one mask, or one for each kind of its layers.

    Args:
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        windows (`dict[str, int | None]`): See `layer_windows`.
        query_positions, key_positions (`torch.LongTensor` of shape `(B, Q)` and `(B, KV)`): For the windows.
        implementation, dtype: See `render_pattern`.
    """
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


def positions_from_mask(attention_mask: torch.Tensor, *, query_length: int) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on either side does not move a text.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, KV)`): Nonzero for real tokens.
        query_length (`int`): Q; the queries are the last Q tokens.

    Returns:
        `torch.LongTensor` of shape `(B, Q)`: 0 for padding in front.

    Example:

        >>> import torch
        >>> positions_from_mask(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]), query_length=5)
        tensor([[0, 0, 0, 1, 2],
                [0, 1, 2, 3, 3]])
    """
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, positions.shape[1] - query_length :]


__all__ = [
    "MASKED_BACKENDS",
    "MODES",
    "PACKED_BACKENDS",
    "AttentionMode",
    "attention_pattern",
    "check_mode",
    "check_position_ids",
    "check_segment_ids",
    "layer_windows",
    "limit_to_window",
    "mode_of_call",
    "positions_from_mask",
    "render_for_layers",
    "render_pattern",
]
