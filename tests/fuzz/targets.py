"""All targets by name."""

from tests.fuzz import (
    targets_checkpoints,
    targets_corpora,
    targets_files,
    targets_masks,
    targets_models,
    targets_pages,
    targets_texts,
    targets_tokens,
    targets_training,
)
from tests.fuzz.judging import Target

_GROUPS = (
    targets_texts,
    targets_tokens,
    targets_masks,
    targets_training,
    targets_files,
    targets_checkpoints,
    targets_corpora,
    targets_pages,
    targets_models,
)
TARGETS: dict[str, Target] = {target.name: target for group in _GROUPS for target in group.TARGETS}
assert len(TARGETS) == sum(len(group.TARGETS) for group in _GROUPS), "two targets have one name"


def shares(total: int, targets: list[Target]) -> dict[str, int]:
    """How many of so many inputs each target gets, by weight; what rounding leaves over goes to the heaviest."""
    weight = sum(target.weight for target in targets)
    parts = {target.name: int(total * target.weight / weight) for target in targets}
    parts[max(targets, key=lambda target: target.weight).name] += total - sum(parts.values())
    return parts


__all__ = ["TARGETS", "shares"]
