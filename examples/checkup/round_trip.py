"""Merge, save and load, and check that every mode and the stock decoder give the same results as before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from examples.checkup.findings import Finding, examine, judged, not_applicable
from modeling_magnet import MagnetSettings
from modeling_magnet.configuration_magnet import MODES, AttentionMode
from modeling_magnet.publishing.merging import HALF_TOLERANCE, TOLERANCES, largest_differences
from modeling_magnet.sources_magnet import ModelSource

LENGTH = 16
SEGMENTS = [0] * 5 + [1] * 4 + [0] * 7
MERGED, BOUND = "adapter, merged", "adapter, causal mode is the base"


@torch.no_grad()
def logits_of(model: Any, mode: AttentionMode | None) -> torch.Tensor:
    """Return the logits of the real tokens of a padded and an unpadded row."""
    generator = torch.Generator().manual_seed(1)
    size = model.config.vocab_size
    ids = torch.randint(min(3, size - 1), size, (2, LENGTH), generator=generator).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    arguments: dict[str, Any] = {} if mode is None else {"mode": mode}
    if mode == "infill":
        arguments["segment_ids"] = torch.tensor(SEGMENTS, device=ids.device).expand(2, -1)
    logits: torch.Tensor = model(ids, attention_mask=mask, **arguments).logits
    return logits[mask.bool()].float()


def equality(first: torch.Tensor, second: torch.Tensor) -> tuple[bool, float]:
    """Return whether two tables are bitwise equal, and their largest difference relative to the largest value."""
    second = second.to(first.device)
    return torch.equal(first, second), float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))


def round_trip_findings(model: Any, folder: Path) -> Iterator[Finding]:
    """Save to a folder, load with the same class and with the stock class, and compare."""
    target = folder / "saved"
    model.save_pretrained(target)
    like = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    yield from examine("saved and loaded", lambda: _loaded_findings(model, target, like))
    yield from examine("stock class", lambda: _stock_findings(model, target, like))


def _loaded_findings(model: Any, target: Path, like: dict[str, Any]) -> Iterator[Finding]:
    again = type(model).from_pretrained(target, **like).to(model.device).eval()
    compared = {mode: equality(logits_of(model, mode), logits_of(again, mode)) for mode in MODES}
    detail = ", ".join(f"{mode} {distance:.1e}" for mode, (_, distance) in compared.items())
    same = all(equal for equal, _ in compared.values())
    yield judged("saved and loaded", same, f"largest differences: {detail} (limit 0)")


def _stock_findings(model: Any, target: Path, like: dict[str, Any]) -> Iterator[Finding]:
    if model.has_adapter and MagnetSettings.from_config(model.config).adapter_modes is not None:
        yield not_applicable("stock class", "an adapter bound to modes, which a stock class does not know")
        return
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        target, trust_remote_code=False, output_loading_info=True, **like
    )
    stock, loading = loaded
    stock.to(model.device).eval()
    missing, unexpected = (sorted(loading[kind]) for kind in ("missing_keys", "unexpected_keys"))
    same, distance = equality(logits_of(model, "causal"), logits_of(stock, None))
    detail = f"{type(stock).__name__}: {len(missing)} missing, {len(unexpected)} unexpected"
    detail += "".join(f"; {name}" for name in [*missing, *unexpected][:3])
    detail += f"; causal logits differ by {distance:.1e} (limit 0)"
    yield judged("stock class", same and not missing and not unexpected, detail)


def merge_findings(model: Any, folder: Path) -> list[Finding]:
    """Compare the merged checkpoint with the model and its enabled adapter, in each mode."""
    if not model.has_adapter:
        return [not_applicable(MERGED, "no adapter")]
    if getattr(model, "is_quantized", False):
        return [not_applicable(MERGED, "the base is quantized; load the adapter on the base as it was")]
    target = folder / "merged"
    modes = MagnetSettings.from_config(model.config).adapter_modes
    model.set_adapter_modes(None)  # an adapter that is limited to some modes cannot be merged
    try:
        model.save_pretrained(target, merge_adapter=True, verify=False)
        merged = type(model).from_pretrained(
            target, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
        differences = largest_differences(model, merged.to(model.device).eval())
    finally:
        model.set_adapter_modes(modes)
    limit = TOLERANCES.get(model.dtype, HALF_TOLERANCE)
    detail = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    good = all(value <= limit for value in differences.values())  # written so that a NaN fails
    return [judged(MERGED, good, f"largest differences, of the largest value: {detail} (limit {limit:g})")]


def adapter_mode_findings(model: Any, base: ModelSource | None) -> list[Finding]:
    """Compare causal logits with those of the base without the adapter."""
    modes = MagnetSettings.from_config(model.config).adapter_modes if model.has_adapter else None
    if modes is None:
        return [not_applicable(BOUND, "on in every mode" if model.has_adapter else "no adapter")]
    if "causal" in modes:
        return [not_applicable(BOUND, f"on in {', '.join(modes)}")]
    if base is None:
        return [not_applicable(BOUND, "the base is in the same directory")]
    base_model = AutoModelForCausalLM.from_pretrained(
        base.path,
        trust_remote_code=False,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        **base.arguments,
    )
    same, distance = equality(logits_of(base_model.to(model.device).eval(), None), logits_of(model, "causal"))
    detail = f"on in {', '.join(modes) or 'no mode'}; to the base {distance:.1e} (limit 0)"
    return [judged(BOUND, same, detail)]
