"""Plots of the three attention masks as the model builds them, and of training curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from trainer.whole_files import whole_file

# Two spans in seven tokens, enough to see that spans do not see each other.
SEGMENTS: dict[str, list[int]] = {
    "bidirectional": [0, 0, 0, 0, 0, 0, 0],
    "causal": [1, 1, 1, 1, 1, 1, 1],
    "infill": [0, 1, 1, 0, 2, 2, 0],
}
TITLES = {
    "bidirectional": "all context: representations",
    "causal": "one span: generation",
    "infill": "context and spans: infilling",
}
CONTEXT_COLOR, SPAN_COLOR = "#4477aa", "#ee7733"
OBJECTIVES = {
    "loss_mntp": "masked next token (MNTP)",
    "loss_msg": "missing span (MSG)",
    "loss_sscl": "contrastive (SSCL)",
}


def allowed_attention(model: Any, segment_ids: Sequence[int]) -> Tensor:
    """Return who may attend to whom, read off the mask that the model hands to its attention layers.

    Returns:
        `torch.BoolTensor` of shape `(S, S)`: row attends to column.
    """
    length = len(segment_ids)
    mode = "infill" if any(segment_ids) else "bidirectional"
    inputs_embeds = torch.zeros(1, length, model.config.hidden_size, device=model.device, dtype=model.dtype)
    mask = model._prepare_4d_causal_attention_mask(
        torch.ones(1, length, dtype=torch.long, device=model.device),
        (1, length),
        inputs_embeds,
        0,
        segment_ids=torch.tensor([list(segment_ids)], device=model.device) if mode == "infill" else None,
        mode=mode,
    )
    allowed = mask if mask.dtype == torch.bool else mask == 0  # eager masks are floats, 0 where attention may go
    return allowed[0, 0].cpu()


def draw_masks(model: Any, path: Path) -> Path:
    """Draw the three attention masks side by side.

    Source: Khosla et al. 2025, figure 2.
    """
    figure = Figure(figsize=(11, 4.4))  # without pyplot there is not a window system and nothing to close
    panels = figure.subplots(1, len(SEGMENTS))
    for axes, (name, segment_ids) in zip(panels, SEGMENTS.items(), strict=True):
        _draw_mask(axes, allowed_attention(model, segment_ids), segment_ids)
        axes.set_title(TITLES[name])
    panels[0].set_ylabel("token that attends")
    panels[1].set_xlabel("token that is attended to")
    legend = [Patch(color=CONTEXT_COLOR, label="context token"), Patch(color=SPAN_COLOR, label="span token")]
    figure.legend(handles=legend, loc="lower center", ncol=2, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)
    return path


def _draw_mask(axes: Axes, allowed: Tensor, segment_ids: Sequence[int]) -> None:
    """Draw one mask: a cell has the colour of its column where the row's token attends to the column's."""
    for row in range(len(segment_ids)):
        for column, segment in enumerate(segment_ids):
            color = SPAN_COLOR if segment else CONTEXT_COLOR
            axes.add_patch(
                Rectangle((column, row), 1, 1, edgecolor="0.7", facecolor=color if allowed[row, column] else "w")
            )
    counts: dict[int, int] = {}
    labels = []
    for segment in segment_ids:
        counts[segment] = counts.get(segment, 0) + 1
        kind = "c" if segment == 0 else "s" if max(segment_ids) == 1 else f"s{segment},"
        labels.append(f"{kind}{counts[segment]}")
    ticks = [index + 0.5 for index in range(len(segment_ids))]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.tick_params(length=0)
    axes.set_xlim(0, len(segment_ids))
    axes.set_ylim(len(segment_ids), 0)
    axes.set_aspect("equal")


def curve(log_history: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one logged quantity.

    Example:
        >>> curve([{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 3.0}, {"step": 10, "loss": 1.0}], "loss")
        ([5, 10], [2.0, 1.0])
    """
    found = [(int(row["step"]), float(row[key])) for row in log_history if key in row]
    return [step for step, _ in found], [value for _, value in found]


def draw_curves(
    path: Path, *, causal_logs: dict[str, Sequence[dict[str, Any]]], adaptation_log: Sequence[dict[str, Any]]
) -> Path:
    """Draw the training losses: causal runs on the left, the objectives of the adaptation on the right."""
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    for name, log_history in causal_logs.items():
        left.plot(*curve(log_history, "loss"), label=name)
    for key, name in OBJECTIVES.items():
        steps, values = curve(adaptation_log, key)
        if steps:
            right.plot(steps, values, label=name)
    left.set_title("next-token loss of the causal runs")
    right.set_title("adaptation, per objective")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_ylabel("loss in nats")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


def draw_objectives(path: Path, log_history: Sequence[dict[str, Any]]) -> Path | None:
    """Draw each objective of an adaptation in a panel of its own: in training, and on held-out texts or pairs."""
    kinds = {"training": "", "held out": "eval_"}
    panels = {
        title: {kind: curve(log_history, prefix + key) for kind, prefix in kinds.items()}
        for key, title in OBJECTIVES.items()
    }
    panels = {title: curves for title, curves in panels.items() if any(steps for steps, _ in curves.values())}
    if not panels:
        return None
    width = 4.5 * len(panels)
    figure = Figure(figsize=(width, 4))
    # `tight_layout` would draw all of it once more to measure it.
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.15 / width, bottom=0.12, top=0.92, wspace=0.22)
    last = max(1, *(int(row.get("step", 0)) for row in log_history))
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (kind, (steps, values)), color in zip(curves.items(), (CONTEXT_COLOR, SPAN_COLOR), strict=True):
            if steps:
                axes.plot(steps, values, label=kind, color=color, marker="o", markersize=3)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("loss in nats")
        axes.set_xlim(0, last)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    return path


__all__ = ["SEGMENTS", "allowed_attention", "draw_curves", "draw_masks", "draw_objectives"]
