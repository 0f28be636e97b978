"""Read the schedule of loss weights: phases of optimizer steps that name their objectives."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .objectives import OBJECTIVES

MOST_STEPS = 2**53  # the largest whole number that a float counts to
_POSITIONS = ("mntp", "sscl", "msg")  # of the short spelling: the paper's l1, l2 and l3
_SPELLING = "'800: mntp=1 sscl=9 msg=1', or as 'steps:mntp,sscl,msg' in short"


@dataclass(frozen=True, init=False)
class LossPhase:
    """Weights of the objectives for a number of optimizer steps.

    Args:
        steps (`int`): Optimizer steps, >= 1.
        weights (`float`): One keyword for each objective, >= 0; objectives left out weigh 0.

    Example:
        >>> phase = LossPhase(800, mntp=1, sscl=9)
        >>> phase.weights, phase.sscl, phase.msg, phase.uses_pairs
        ({'mntp': 1, 'sscl': 9}, 9, 0.0, True)
    """

    steps: int
    weights: dict[str, float]  # without zeros

    def __init__(self, steps: int, **weights: float) -> None:
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "weights", {name: weight for name, weight in weights.items() if weight != 0})

    def __getattr__(self, name: str) -> float:
        # Copying and unpickling look attributes up before there are any.
        if name in OBJECTIVES and "weights" in vars(self):
            return self.weights.get(name, 0.0)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def uses_tokens(self) -> bool:
        """Whether an objective of tokens has a weight."""
        return any(OBJECTIVES[name].labels is not None for name in self.weights)

    @property
    def uses_pairs(self) -> bool:
        """Whether an objective of pairs has a weight."""
        return any(OBJECTIVES[name].labels is None for name in self.weights)


def parse_phases(entries: Sequence[str]) -> tuple[LossPhase, ...]:
    """Read phases as they are written on a command line.

    Args:
        entries (list of `str`): One for each phase, in order: `"800: mntp=1 sscl=9 msg=1"`, or in short
            `"800:1,9,1"` with the weights of MNTP, SSCL and MSG.

    Returns:
        `tuple[LossPhase, ...]`: at least one phase.

    Raises:
        ValueError: listing every mistake in every entry.

    Example:
        >>> parse_phases(["3400: mntp=1 msg=1", "800:1,9,1"])[1]
        LossPhase(steps=800, weights={'mntp': 1.0, 'sscl': 9.0, 'msg': 1.0})
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence) or not len(entries):
        raise ValueError(f"The loss phases are {entries!r}; pass a list of at least one, such as {_SPELLING}.")
    phases, complaints = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            phase = _read(str(entry))
        except (ValueError, TypeError):  # a TypeError for an objective called `steps`
            complaints.append(f"phase {number}, {entry!r}: write it as {_SPELLING}.")
            continue
        phases.append(phase)
        complaints += [f"phase {number}, {entry!r}: {complaint}" for complaint in _complaints(phase)]
    if complaints:
        raise ValueError("\n- ".join(["The loss phases cannot be used:", *complaints]))
    return tuple(phases)


def phase_at(phases: Sequence[LossPhase], step: int) -> LossPhase:
    """Return the phase after a number of optimizer steps; the last phase stays in force after its end.

    Example:
        >>> phases = parse_phases(["3400:1,0,1", "800:1,9,1"])
        >>> phase_at(phases, 3399).sscl, phase_at(phases, 3400).sscl
        (0.0, 9.0)
    """
    for phase in phases[:-1]:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


def contrastive_steps_before(phases: Sequence[LossPhase], step: int) -> int:
    """Count the steps with pairs among the first `step` optimizer steps.

    This is the position in the sequence of pair batches, so that no checkpoint needs to hold it.

    Example:
        >>> contrastive_steps_before(parse_phases(["3400:1,0,1", "800:1,9,1"]), 3500)
        100
    """
    count = 0
    for phase in phases[:-1]:
        steps_in_phase = min(step, phase.steps)
        count += steps_in_phase if phase.uses_pairs else 0
        step -= steps_in_phase
    return count + (step if phases[-1].uses_pairs else 0)


def _read(entry: str) -> LossPhase:
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
    return LossPhase(int(steps), **weights)


def _complaints(phase: LossPhase) -> list[str]:
    """List what is wrong with the steps and weights of a phase."""
    complaints = []
    if phase.steps < 1:
        complaints.append(f"{phase.steps} steps; pass at least one, or leave the phase out.")
    if phase.steps > MOST_STEPS:
        complaints.append(f"{len(str(phase.steps))} digits of steps; pass {MOST_STEPS} at most.")
    complaints += [
        f"there is no objective {name!r}; name some of {', '.join(OBJECTIVES)}."
        for name in phase.weights
        if name not in OBJECTIVES
    ]
    complaints += [
        f"the weight of {name} is {weight}; pass a finite number, 0 or above."
        for name, weight in phase.weights.items()
        if not (weight >= 0 and math.isfinite(weight))
    ]
    if not phase.weights:
        complaints.append("all weights are 0; give one objective a weight.")
    return complaints


__all__ = ["MOST_STEPS", "LossPhase", "contrastive_steps_before", "parse_phases", "phase_at"]
