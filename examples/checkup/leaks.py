"""Change one token and check which states change: exactly those that may attend to it.

Changed and unchanged rows are at the same index of batches of the same shape, where a deterministic back-end repeats
its results bit for bit, so that a difference above its noise comes from the changed token. Who may attend to whom is
written down here anew, so that an error in the library's masks cannot hide itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from examples.checkup.findings import Finding, judged
from modeling_magnet.configuration_magnet import MODES, AttentionMode
from modeling_magnet.masking_magnet import layer_windows

LENGTH = 24
# Two spans, and the tokens that are changed: in the context before, between and after the spans, and inside each.
SEGMENTS = [0] * 6 + [1] * 4 + [0] * 5 + [2] * 3 + [0] * 6
CHANGED = (1, 7, 12, 16, 23)
# In a trained model, changing one token may happen to change nothing; of two changes, one shows.
DRAWS = 2
PADS = 5
# Largest movement of an unchanged state, relative to the largest value. Equal bits are expected in every precision;
# if a back-end is not deterministic, its noise is measured and allowed.
TOLERANCE = 1e-6
# The same for padded rows, because padding changes the order of sums.
PADDING_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF_PADDING_TOLERANCE = 0.15
NOISE_FACTOR = 10


def sees(query: int, key: int, *, mode: AttentionMode, segments: Sequence[int], window: int | None) -> bool:
    """Return whether one token may attend to another."""
    if window is not None and abs(query - key) > window - (mode == "causal"):
        return False
    if mode == "bidirectional":
        return True
    if mode == "causal":
        return key <= query
    return segments[key] == 0 or (segments[key] == segments[query] and key <= query)


def windows_by_layer(config: Any) -> list[int | None]:
    """Return the attention window of each layer, from the first to the last."""
    windows = layer_windows(config)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or "" in windows:
        return [windows[""]] * config.num_hidden_layers
    return [windows[kind] for kind in kinds]


def reached_from(
    place: int, *, mode: AttentionMode, segments: Sequence[int], windows: Sequence[int | None]
) -> set[int]:
    """Return the positions whose last state depends on a token through all layers.

    Example:
        >>> sorted(reached_from(2, mode="causal", segments=[0] * 6, windows=[2, 2]))
        [2, 3, 4]
        >>> sorted(reached_from(1, mode="infill", segments=[0, 1, 1, 0, 2], windows=[None]))
        [1, 2]
    """
    reached = {place}
    for window in windows:
        reached |= {
            query
            for query in range(len(segments))
            if any(sees(query, key, mode=mode, segments=segments, window=window) for key in reached)
        }
    return reached


@contextmanager
def attention_backend(model: Any, backend: str) -> Iterator[None]:
    """Use an attention back-end within the context, then restore the model's own."""
    before = model.config._attn_implementation
    model.set_attn_implementation(backend)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def leak_findings(model: Any, mode: AttentionMode, backend: str) -> list[Finding]:
    """Compare the states that moved with those that had to move."""
    windows = windows_by_layer(model.config)
    ids = _random_ids(model, len(CHANGED) * DRAWS, LENGTH)
    changed = ids.clone()
    for row in range(len(ids)):
        changed[row, CHANGED[row // DRAWS]] += 1 + row % DRAWS
    changed %= model.config.vocab_size
    with attention_backend(model, backend):
        first, again, other = (_states(model, rows, mode) for rows in (ids, ids, changed))
    scale = float(first.abs().max())
    noise = NOISE_FACTOR * float((first - again).abs().max()) / scale
    # The largest movement over the draws for each changed token: (changed tokens, positions).
    moved = ((first - other).abs().amax(-1) / scale).view(len(CHANGED), DRAWS, LENGTH).amax(1)
    tolerance = max(TOLERANCE, noise)
    faults, least, most = [], float("inf"), 0.0
    for movement, place in zip(moved.tolist(), CHANGED, strict=True):
        reached = reached_from(place, mode=mode, segments=SEGMENTS, windows=windows)
        blind = [position for position in sorted(reached) if not movement[position] > noise]
        unreached = [position for position in range(LENGTH) if position not in reached]
        leaks = [position for position in unreached if not movement[position] <= tolerance]  # also a NaN
        if blind:
            faults.append(f"token {place} does not move {_ranges(blind)}, which must see it")
        if leaks:
            worst = max(movement[position] for position in leaks)
            faults.append(f"token {place} moves {_ranges(leaks)}, which must not see it, by {worst:.1e}")
        least = min([least, *(movement[position] for position in reached)])
        most = max([most, *(movement[position] for position in unreached)])
    figures = (
        f"{len(CHANGED)} of {LENGTH} tokens changed in turn: states that see them move by {least:.1e} or more, others "
        f"by {most:.1e} or less (limit {tolerance:.0e})"
    )
    return [judged(f"leaks, {mode}, {backend}", not faults, "; ".join(faults) or figures)]


def padding_findings(model: Any, backend: str) -> list[Finding]:
    """Check that padding on either side, and its content, moves no state of a real token in any mode."""
    ids = _random_ids(model, DRAWS, LENGTH)
    limit = PADDING_TOLERANCES.get(model.dtype, HALF_PADDING_TOLERANCE)
    contents, sides, noise = 0.0, 0.0, 0.0
    with attention_backend(model, backend):
        for mode in MODES:
            unpadded = _states(model, ids, mode)
            scale = float(unpadded.abs().max())
            for side in ("left", "right"):
                padded = [_padded(model, ids, mode, side, content) for content in (0, 5, 0)]
                noise = max(noise, NOISE_FACTOR * float((padded[0] - padded[2]).abs().max()) / scale)
                contents = max(contents, float((padded[0] - padded[1]).abs().max()) / scale)
                sides = max(sides, float((padded[0] - unpadded).abs().max()) / scale)
    tolerance = max(TOLERANCE, noise)
    detail = (
        f"{PADS} pads on either side, three modes: other ids in them move real states by {contents:.1e} (limit "
        f"{tolerance:.0e}), pads instead of none by {sides:.1e} (limit {limit:g})"
    )
    return [judged(f"padding, {backend}", contents <= tolerance and sides <= limit, detail)]


def _padded(model: Any, ids: torch.Tensor, mode: AttentionMode, side: str, content: int) -> torch.Tensor:
    """Return the states of the real tokens of padded rows."""
    pads = torch.full((len(ids), PADS), content, device=ids.device) % model.config.vocab_size

    def beside(filling: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return torch.cat([filling, real] if side == "left" else [real, filling], dim=1)

    mask = beside(torch.zeros_like(pads), torch.ones_like(ids))
    segments = [0] * PADS + SEGMENTS if side == "left" else SEGMENTS + [0] * PADS
    states = _states(model, beside(pads, ids), mode, mask=mask, segments=segments)
    return states[:, PADS:] if side == "left" else states[:, :LENGTH]


def _random_ids(model: Any, rows: int, length: int) -> torch.Tensor:
    """Return ordinary tokens, the same in every run."""
    lowest, size = min(3, model.config.vocab_size - 1), model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lowest, size, (rows, length), generator=generator).to(model.device)


@torch.no_grad()
def _states(
    model: Any,
    ids: torch.Tensor,
    mode: AttentionMode,
    *,
    mask: torch.Tensor | None = None,
    segments: list[int] | None = None,
) -> torch.Tensor:
    """Return the last hidden states in float32.

    Raises:
        RuntimeError: If they are not finite.
    """
    if model.config._attn_implementation == "flex_attention":
        torch.compiler.reset()  # on a CPU, compilation may fail for a second length or mask (torch 2.13)
    table = torch.tensor(SEGMENTS if segments is None else segments, device=ids.device).expand(len(ids), -1)
    output = model(
        ids,
        attention_mask=mask,
        mode=mode,
        segment_ids=table if mode == "infill" else None,
        use_cache=False,
        logits_to_keep=torch.arange(0, device=ids.device),
    )
    states: torch.Tensor = output.last_hidden_state.float()
    real = states if mask is None else states[mask.bool()]
    if not bool(real.isfinite().all()):
        raise RuntimeError(
            f"states of {mode} mode are not finite numbers; look for NaN in the weights, or use float32"
        )
    return states


def _ranges(positions: list[int]) -> str:
    """Format positions and join consecutive ones.

    Example:
        >>> _ranges([0, 1, 2, 5])
        'positions 0-2, 5'
    """
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return "positions " + ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
