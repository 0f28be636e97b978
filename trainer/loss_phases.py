"""Parse the phases of a run: how many steps each objective is trained, and with which weight."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from .objectives import OBJECTIVES

MAX_STEPS = 2**53  # a float represents all integers up to here
_POSITIONS = ("mntp", "sscl", "msg")  # order of the weights in the short spelling: the paper's l1, l2 and l3
_SPELLING = "'800: mntp=1 sscl=9 msg=1', or as 'steps:mntp,sscl,msg' in short"


@dataclass(frozen=True)
class LossPhase:
    """Weights of the objectives for a number of optimizer steps.

    Args:
        steps (`int`): Optimizer steps, >= 1.
        weights (`dict[str, float]`): Weights > 0 by objective; the others are not trained.

    Example:
        >>> LossPhase(800, {"mntp": 1, "sscl": 9}).uses_pairs
        True
    """

    steps: int
    weights: dict[str, float]

    @cached_property
    def uses_tokens(self) -> bool:
        """Whether an objective of tokens has a weight."""
        return any(not OBJECTIVES[name].reads_pairs for name in self.weights)

    @cached_property
    def uses_pairs(self) -> bool:
        """Whether an objective of pairs has a weight."""
        return any(OBJECTIVES[name].reads_pairs for name in self.weights)


def parse_phases(entries: Sequence[str]) -> tuple[LossPhase, ...]:
    """Parse phases as written on a command line.

    Args:
        entries (list of `str`): One for each phase, in order: `"800: mntp=1 sscl=9 msg=1"`, or in short `"800:1,9,1"`,
            with the weights of MNTP, SSCL and MSG.

    Raises:
        ValueError: If an entry cannot be used; the message lists every mistake in every entry.

    Example:
        >>> parse_phases(["3400: mntp=1 msg=1", "800:1,9,1"])[1]
        LossPhase(steps=800, weights={'mntp': 1.0, 'sscl': 9.0, 'msg': 1.0})
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence) or not len(entries):
        raise ValueError(f"The loss phases are {entries!r}; pass a list of at least one, such as {_SPELLING}.")
    phases, complaints = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            phase = _parse_phase(str(entry))
        except ValueError:
            complaints.append(f"phase {number}, {entry!r}: write it as {_SPELLING}.")
            continue
        phases.append(phase)
        complaints += [f"phase {number}, {entry!r}: {complaint}" for complaint in _complaints_about(phase)]
    if complaints:
        raise ValueError("\n- ".join(["The loss phases cannot be used:", *complaints]))
    return tuple(phases)


def _parse_phase(entry: str) -> LossPhase:
    """Parse one entry of either spelling; raise a ValueError if it is malformed."""
    steps, text = entry.split(":")
    named: Iterable[Sequence[str]] = zip(_POSITIONS, text.split(","), strict=True)
    if "=" in text:
        named = [part.split("=") for part in text.split()]
    weights: dict[str, float] = {}
    for name, weight in named:
        if name in weights:
            raise ValueError(f"{name} is given twice")
        weights[name] = float(weight)
    return LossPhase(int(steps), {name: weight for name, weight in weights.items() if weight != 0})


def _complaints_about(phase: LossPhase) -> Iterator[str]:
    """Yield complaints about the steps and weights of a phase."""
    if not 1 <= phase.steps <= MAX_STEPS:
        yield f"{phase.steps} steps; pass 1 to {MAX_STEPS}."
    for name, weight in phase.weights.items():
        if name not in OBJECTIVES:
            yield f"{name!r} is not an objective; pass some of {', '.join(OBJECTIVES)}."
        if not (weight >= 0 and math.isfinite(weight)):
            yield f"the weight of {name} is {weight}; pass a finite number, 0 or above."
    if not phase.weights:
        yield "all weights are 0; give at least one objective a weight."
