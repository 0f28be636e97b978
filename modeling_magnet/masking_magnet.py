"""Attention masks: which tokens attend to which, rendered for each back-end.

Shapes: B batch, Q queries of this call, KV keys seen so far (cached ones included).
"""

from typing import TYPE_CHECKING, Any

import torch

from .attention_magnet import DEFAULT_ATTENTION, product_dtype, takes_float_masks
from .configuration_magnet import MODES, AttentionMode, MagnetSettings, check_mode

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MASKED_BACKENDS = ("eager", "sdpa", "flex_attention")


def attention_pattern(
    segment_ids: torch.Tensor, *, query_length: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Let every token attend to the context, and span tokens also to their own span up to themselves.

    Args:
        segment_ids (`torch.LongTensor` of shape `(B, KV)`): 0 for a context token, k >= 1 for the k-th span.
        query_length (`int`): Q; the queries are the last Q of the KV tokens.
        attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*): Zero for padding. A padding token attends only
            to itself, so that no row of the softmax is empty, and no other token attends to it.

    Returns:
        `torch.BoolTensor` of shape `(B, 1, Q, KV)`: true where the query may attend to the key.

    Source: Khosla et al. 2025 (https://huggingface.co/papers/2501.08648), Figure 2.

    Example (`c` is a context token, 1 and 2 are spans):

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
    # In place, because the pattern of long rows is too large to be copied.
    allowed = query_segments[:, :, None] == segment_ids[:, None, :]  # (B, Q, KV)
    allowed &= index <= queries[:, None]  # the past of the same segment
    allowed |= (segment_ids == 0)[:, None, :]  # the whole context
    if attention_mask is not None:
        allowed &= attention_mask.bool()[:, None, :]
        allowed |= index == queries[:, None]
    return allowed[:, None]  # (B, 1, Q, KV)


def render_pattern(allowed: torch.Tensor, *, implementation: str, dtype: torch.dtype) -> "torch.Tensor | BlockMask":
    """Render a boolean pattern `(B, 1, Q, KV)` for a back-end.

    Eager attention *adds* its mask, so it gets 0 and the minimum of `dtype`; SDPA gets booleans, flex attention a
    block mask, and the default of `attention_magnet.py` one of the first two.
    """
    if implementation == DEFAULT_ATTENTION:
        if not takes_float_masks(dtype, allowed.device):
            return allowed
        implementation, dtype = "eager", product_dtype(dtype, allowed.device)
    if implementation == "eager":
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)
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
    """Return how many positions to either side the layers of a decoder attend to, by kind of layer.

    Returns:
        `dict`: kind of layer to window in positions, `None` for no limit; only the key `""` if all layers are alike.

    Raises:
        ValueError: If bidirectional and infill mode are not defined for a kind of layer.

    Example:

        >>> from transformers import MistralConfig, Qwen3Config
        >>> layer_windows(MistralConfig(sliding_window=64)), layer_windows(Qwen3Config())
        ({'': 64}, {'': None})
    """
    kinds = set(_declared_field(config, "layer_types") or ())
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"This {config.model_type} has layers of {unknown}; bidirectional and infill mode are only defined for "
            "full and sliding attention. Choose another base model."
        )
    window = _declared_field(config, "sliding_window")
    if window is not None:
        trained = MagnetSettings.from_config(config).bidirectional_window
        if trained is not None:
            window = trained
        elif getattr(config, "use_bidirectional_attention", False):
            window -= 1  # transformers' bidirectional window excludes the position at distance `sliding_window`
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    return {"": None if kinds else window}


def _declared_field(config: Any, name: str) -> Any:
    """Return a field if the config's class declares it: decoders of transformers ignore other fields of a file."""
    kind = type(config)
    is_read = hasattr(kind, name) or not kind.__module__.startswith("transformers.")
    return getattr(config, name, None) if is_read else None


def limit_to_window(
    allowed: torch.Tensor, *, query_positions: torch.Tensor, key_positions: torch.Tensor, window: int
) -> torch.Tensor:
    """Restrict a pattern to keys at most `window` positions before or after the query.

    A causal window looks back only and counts the token itself. transformers makes it bidirectional in this way, so
    the stock classes that sentence-transformers opens attend to the same tokens.
    """
    queries, keys = query_positions[:, None, :, None], key_positions[:, None, None, :]
    # Comparing bounds takes one byte a pair; distances and their absolute values would take eight bytes each.
    # A padding token still attends to itself, because that distance is 0.
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
    windows: dict[str, int | None] | None = None,
) -> Any:
    """Render one mask, or a `dict` with one for each kind of layer: see `layer_windows` and `render_pattern`.

    Args:
        config (`PreTrainedConfig`): Determines the windows and the back-end.
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        query_positions, key_positions (`torch.LongTensor` of shape `(B, Q)` and `(B, KV)`): For the windows.
        dtype (`torch.dtype`): Dtype of the hidden states.
        windows (`dict`, *optional*): Replaces the windows of the config.
    """
    windows = layer_windows(config) if windows is None else windows
    implementation = str(config._attn_implementation)
    positions = {"query_positions": query_positions, "key_positions": key_positions}
    rendered: dict[int | None, Any] = {}  # kinds of layers with the same window share a mask
    for window in dict.fromkeys(windows.values()):
        pattern = allowed if window is None else limit_to_window(allowed, window=window, **positions)
        rendered[window] = render_pattern(pattern, implementation=implementation, dtype=dtype)
    masks = {kind: rendered[window] for kind, window in windows.items()}
    return masks.get("", masks)


def mask_of_call(
    config: Any,
    attention_mask: torch.Tensor | None,
    input_shape: tuple[int, int] | torch.Size,
    inputs_embeds: torch.Tensor,
    past_length: int,
    *,
    position_ids: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    mode: AttentionMode,
) -> Any:
    """Check the masks and segment ids of a forward, and render its mask; in causal mode return the given one.

    Arguments and errors are those of the model's `_prepare_4d_causal_attention_mask`.
    """
    shape, device = (input_shape[0], past_length + input_shape[1]), inputs_embeds.device
    if mode not in MODES:
        check_mode(mode)
    check_segment_ids(segment_ids, mode=mode, expected_shape=shape)
    if mode == "causal":
        return attention_mask
    if config._attn_implementation not in (*MASKED_BACKENDS, DEFAULT_ATTENTION):
        raise ValueError(
            f"Attention back-end {config._attn_implementation!r} does not support the masks of mode={mode!r}. Load "
            f"the model with attn_implementation set to one of {', '.join(MASKED_BACKENDS)}."
        )
    if past_length and any(window is not None for window in layer_windows(config).values()):
        raise ValueError(
            f"A cache of {past_length} tokens was passed to a model with sliding windows, for which mode={mode!r} "
            "needs the positions of all tokens. Pass all tokens at once, or use `model.infill`."
        )
    if attention_mask is not None:
        _check_table(attention_mask, shape, name="attention_mask")
    if segment_ids is None:
        segment_ids = torch.zeros(shape, dtype=torch.long, device=device)
    allowed = attention_pattern(segment_ids, query_length=input_shape[1], attention_mask=attention_mask)
    if position_ids is None:
        position_ids = torch.arange(shape[1], device=device)[None, past_length:]
    return layer_masks(
        config, allowed, query_positions=position_ids, key_positions=position_ids, dtype=inputs_embeds.dtype
    )


def _check_table(table: Any, shape: tuple[int, int], *, name: str) -> None:
    """Raise unless the table is a tensor with an entry for each token seen so far."""
    actual = tuple(table.shape) if isinstance(table, torch.Tensor) else type(table).__name__
    if actual != shape:
        raise ValueError(
            f"`{name}` is {actual}; expected a 2-D tensor of shape {shape}, with an entry for each token seen so far "
            "(tokens in the cache included)."
        )


def check_segment_ids(segment_ids: torch.Tensor | None, *, mode: str, expected_shape: tuple[int, int]) -> None:
    """Raise if segment ids do not fit the mode, do not have `expected_shape`, `(B, KV)`, or are negative."""
    if (segment_ids is None) == (mode == "infill"):
        raise ValueError(
            f"`segment_ids` is {'missing' if segment_ids is None else 'given'} with mode={mode!r}. Pass them (0 for "
            "context, k >= 1 for the k-th span) in infill mode only."
        )
    if segment_ids is None:
        return
    _check_table(segment_ids, expected_shape, name="segment_ids")
    # Reading a value back would break a compiled graph, and synchronize with an accelerator in every step. The sign is
    # not checked there; the mask treats a negative id as one more span.
    is_readable = segment_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable and segment_ids.numel() and int(segment_ids.min()) < 0:
        raise ValueError(
            f"`segment_ids` contains {int(segment_ids.min())}; expected 0 for context and k >= 1 for the k-th span. "
            "Mark padding with `attention_mask`."
        )


class StepMasks:
    """Masks `(B, 1, K, C + tokens so far)` of decoding steps, each of which feeds one token of every span.

    A span attends to the context and to its own tokens so far. To avoid the cost of rendering at every step, the mask
    of the last step is rendered once, and each step gets a view of its first keys. Sliding windows move with the query
    and block masks cannot be sliced, so these are rendered at every step. A window that reaches all positions has no
    effect and is dropped.

    Args:
        config (`PreTrainedConfig`): As in `layer_masks`.
        visible (`torch.BoolTensor` of shape `(B, C)`): Context tokens that spans may attend to.
        context_positions (`torch.LongTensor` of shape `(B, C)`): Their positions.
        starts (`torch.LongTensor` of shape `(B, K)`): Position of the first token of each of K spans.
        num_steps (`int`): T.
        dtype (`torch.dtype`): Dtype of the hidden states.
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
        same_span = torch.eye(num_spans, dtype=torch.bool, device=visible.device).repeat(1, num_steps)  # (K, T * K)
        rows = visible[:, None].expand(-1, num_spans, -1)  # (B, K, C)
        self.allowed = torch.cat([rows, same_span.expand(batch_size, -1, -1)], dim=-1)[:, None]  # (B, 1, K, C + T * K)
        steps = torch.arange(num_steps, device=visible.device)
        span_positions = (starts[:, None, :] + steps[:, None]).flatten(1)  # (B, T * K)
        self.key_positions = torch.cat([context_positions, span_positions], dim=1)  # (B, C + T * K)
        self.windows = layer_windows(config)
        if any(self.windows.values()):
            farthest = int(self.key_positions.max())  # the largest distance; synchronizes once for all steps
            reaches_all = {kind for kind, window in self.windows.items() if window is None or window >= farthest}
            self.windows = {kind: None if kind in reaches_all else self.windows[kind] for kind in self.windows}
        renders_once = config._attn_implementation != "flex_attention" and not any(self.windows.values())
        self.rendered = self._render(self.allowed, starts, self.key_positions) if renders_once else None

    def at(self, step: int, *, num_rows: int) -> Any:
        """Return the masks of step `step` for the first `num_rows` rows, over the keys seen by then."""
        seen = self.context + (step + 1) * self.starts.shape[1]
        if isinstance(self.rendered, dict):
            return {kind: mask[:num_rows, :, :, :seen] for kind, mask in self.rendered.items()}
        if self.rendered is not None:
            return self.rendered[:num_rows, :, :, :seen]
        allowed, keys = self.allowed[:num_rows, :, :, :seen], self.key_positions[:num_rows, :seen]
        return self._render(allowed, self.starts[:num_rows] + step, keys)

    def _render(self, allowed: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor) -> Any:
        options: dict[str, Any] = {"windows": self.windows, "dtype": self.dtype}
        return layer_masks(
            self.config, allowed, query_positions=query_positions, key_positions=key_positions, **options
        )
