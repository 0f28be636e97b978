"""An adapter merged into its base says the same, and one that is bound to modes leaves the others to the base."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from examples.checkup.findings import Finding, judged, not_applicable
from examples.checkup.round_trip import equality, logits_of
from modeling_magnet import MagnetSettings
from modeling_magnet.publishing.merging import HALF_TOLERANCE, TOLERANCES, largest_differences
from modeling_magnet.sources_magnet import ModelSource

MERGED, BOUND = "adapter, merged", "adapter, causal mode is the base"


@contextmanager
def in_every_mode(model: Any) -> Iterator[None]:
    """The block in which an adapter is on in every mode: bound to some, it cannot be merged."""
    modes = MagnetSettings.value(model.config, "adapter_modes")
    model.set_adapter_modes(None)
    try:
        yield
    finally:
        model.set_adapter_modes(modes)


def merge_findings(model: Any, folder: Path) -> list[Finding]:
    """One row: the merged checkpoint against the model with its adapter on, in each mode.

    Args:
        model: Any of ours.
        folder (`Path`): Where there is room for a whole checkpoint.
    """
    if not model.has_adapter:
        return [not_applicable(MERGED, "no adapter")]
    if getattr(model, "is_quantized", False):
        return [not_applicable(MERGED, "the base is quantised; load the adapter on the base as it was")]
    target = folder / "merged"
    with in_every_mode(model):
        model.save_pretrained(target, merge_adapter=True, verify=False)
        merged = type(model).from_pretrained(
            target, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
        differences = largest_differences(model, merged.to(model.device).eval())
    limit = TOLERANCES.get(model.dtype, HALF_TOLERANCE)
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    good = all(value <= limit for value in differences.values())  # so that a NaN fails
    return [judged(MERGED, good, f"largest differences, of the largest value: {told} (limit {limit:g})")]


def bound_findings(model: Any, base: ModelSource | None) -> list[Finding]:
    """One row: causal logits against those of the base that is loaded alone.

    Args:
        model: Any of ours.
        base (`ModelSource`, *optional*): Where the base of the adapter is.
    """
    modes = MagnetSettings.value(model.config, "adapter_modes") if model.has_adapter else None
    if modes is None:
        return [not_applicable(BOUND, "on in every mode" if model.has_adapter else "no adapter")]
    if "causal" in modes:
        return [not_applicable(BOUND, f"on in {', '.join(modes)}")]
    if base is None:
        return [not_applicable(BOUND, "the base stands in the same directory")]
    alone = AutoModelForCausalLM.from_pretrained(
        base.path,
        trust_remote_code=False,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        **base.arguments,
    )
    same, distance = equality(logits_of(alone.to(model.device).eval(), None), logits_of(model, "causal"))
    told = f"on in {', '.join(modes) or 'no mode'}; to the base alone {distance:.1e} (limit 0)"
    return [judged(BOUND, same, told)]


__all__ = ["bound_findings", "in_every_mode", "merge_findings"]
