"""Every rule of who sees whom, and its form for each attention back-end.

Pure functions of tensors. Shapes: B batch, Q queries of this call, KV keys seen so far (cached ones included).
"""

from typing import TYPE_CHECKING, Any

import torch

from .attention_magnet import DEFAULT_ATTENTION, product_dtype, takes_float_masks
from .configuration_magnet import MODES, AttentionMode, MagnetSettings, check_mode
from .losses_magnet import IGNORE_INDEX

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


MASKED_BACKENDS = ("eager", "sdpa", "flex_attention")


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
    kinds = set(_declared_field(config, "layer_types") or ())
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"This {config.model_type} has layers of {unknown}; bidirectional and infill mode are only defined for "
            "full and sliding attention. Choose another base model."
        )
    window = _declared_field(config, "sliding_window")
    if window is not None:
        trained = MagnetSettings.of(config).bidirectional_window
        if trained is not None:
            window = trained
        elif getattr(config, "use_bidirectional_attention", False):
            window -= 1  # the library's masks of such a config leave the last position out
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    return {"": None if kinds else window}


def _declared_field(config: Any, name: str) -> Any:
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


def render_for_layers(
    allowed: torch.Tensor,
    *,
    windows: dict[str, int | None],
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """Render one mask, or a `dict` with one for each kind of layers: see `layer_windows` and `render_pattern`.

    Args:
        allowed (`torch.BoolTensor` of shape `(B, 1, Q, KV)`): True where the query may attend.
        query_positions, key_positions (`torch.LongTensor` of shape `(B, Q)` and `(B, KV)`): For the windows.
        dtype (`torch.dtype`): Of the hidden states.
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


def layer_masks(config: Any, allowed: torch.Tensor, **options: Any) -> Any:
    """Render what a decoder is handed for a pattern, with the windows and the back-end of its config.

    Args:
        config (`PreTrainedConfig`): Of the model.
        allowed, options: As in `render_for_layers`.
    """
    backend = str(config._attn_implementation)
    return render_for_layers(allowed, windows=layer_windows(config), implementation=backend, **options)


def mask_of_call(
    config: Any,
    *,
    mode: AttentionMode,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    input_shape: tuple[int, int] | torch.Size,
    past_length: int,
    inputs_embeds: torch.Tensor,
) -> Any:
    """Check the tables of a forward, and render its mask; in causal mode the given one comes back.

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
            f"Attention back-end {config._attn_implementation!r} cannot do mode={mode!r}: it takes no such mask. Load "
            f"the model with attn_implementation set to one of {', '.join(MASKED_BACKENDS)}."
        )
    if past_length and any(window is not None for window in layer_windows(config).values()):
        raise ValueError(
            f"A cache of {past_length} tokens was given to a model with sliding windows; mode={mode!r} needs the "
            "positions of all tokens for them. Pass all tokens at once, or use `model.infill`."
        )
    if attention_mask is not None:
        _check_table(attention_mask, shape, name="attention_mask")
    if segment_ids is None:
        segment_ids = torch.zeros(shape, dtype=torch.long, device=device)
    allowed = attention_pattern(segment_ids, query_length=input_shape[1], attention_mask=attention_mask)
    if position_ids is None:
        position_ids = torch.arange(shape[1], device=device)[None, past_length:]
    positions = {"query_positions": position_ids, "key_positions": position_ids}
    return layer_masks(config, allowed, **positions, dtype=inputs_embeds.dtype)


def _check_table(table: Any, shape: tuple[int, int], *, name: str) -> None:
    """Refuse what is not a tensor with a cell for each token seen so far."""
    given = tuple(table.shape) if isinstance(table, torch.Tensor) else type(table).__name__
    if given != shape:
        raise ValueError(
            f"`{name}` is {given}; expected a 2-D tensor of shape {shape}, with a cell for each token seen so far "
            "(tokens in the cache included)."
        )


def check_segment_ids(
    segment_ids: torch.Tensor | None, *, mode: str, expected_shape: tuple[int, int] = (0, 0)
) -> None:
    """Refuse segment ids that do not fit the mode, or are not a legal table of shape `expected_shape`, `(B, KV)`."""
    if (segment_ids is None) == (mode == "infill"):
        raise ValueError(
            f"`segment_ids` is {'missing' if segment_ids is None else 'given'} with mode={mode!r}; infill mode, and "
            "no other, reads them: 0 for context, k >= 1 for the k-th span."
        )
    if segment_ids is None:
        return
    _check_table(segment_ids, expected_shape, name="segment_ids")
    # Reading a value back would break a compiled graph, and make the host wait for an accelerator in every step; there
    # the caller vouches for the sign. (A negative id is a span like any other to the mask.)
    is_readable = segment_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable and segment_ids.numel() and int(segment_ids.min()) < 0:
        raise ValueError(
            f"`segment_ids` holds {int(segment_ids.min())}; expected 0 for context and k >= 1 for the k-th span. Mark "
            "padding with `attention_mask`."
        )


def check_labels_are_hidden(
    labels: torch.Tensor,
    *,
    mode: str,
    inputs_embeds: torch.Tensor,
    embed: Any,
    mask_token_id: int | None,
    shift_labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
) -> None:
    """Refuse labels `(B, S)` of tokens that their own predictors read in the input.

    The logits of position i predict token i + 1. Outside causal mode every token sees the context, so that a context
    token with a label must be hidden in the input, by a mask token or another one. Up to half of those may be as in
    the input: BERT's corruption keeps a few of the tokens that it picks. Span tokens are not seen by what predicts
    them.
    """
    tables = (labels, labels if shift_labels is None else shift_labels)
    # Reading a value back would break a compiled graph. Of wrong shapes the loss says what is wrong with them.
    if torch.compiler.is_compiling() or any(table.shape != inputs_embeds.shape[:2] for table in tables):
        return
    targets = (labels[:, 1:] if shift_labels is None else shift_labels[:, :-1]).to(inputs_embeds.device)  # (B, S - 1)
    is_open = targets != IGNORE_INDEX
    for table, is_visible in ((segment_ids, False), (attention_mask, True)):
        if table is not None:
            is_open = is_open & (table[:, 1 - labels.shape[1] :].bool() == is_visible).to(is_open.device)
    with torch.no_grad():
        is_seen = (embed(targets.clamp(min=0)) == inputs_embeds[:, 1:]).all(-1) & is_open
    if mask_token_id is not None:
        is_seen = is_seen & (targets != mask_token_id)
    num_open, num_seen = int(is_open.sum()), int(is_seen.sum())
    if num_seen and 2 * num_seen >= num_open:
        raise ValueError(
            f"`labels` ask for {num_seen} tokens that mode={mode!r} shows to what predicts them: the loss would only "
            'measure copying. Pass mode="causal" for the loss from left to right; else give labels, or `target_ids`, '
            "only to positions whose token is hidden by the mask token or is in a span, and -100 to all others."
        )


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
        renders_once = config._attn_implementation != "flex_attention" and not any(self.windows.values())
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
