"""The schedule of loss weights: phases of so many steps, each with one weight per objective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_STEPS = 2**53  # more than any run has, and what a float still counts


@dataclass(frozen=True)
class LossPhase:
    """Weights of the three losses for a number of optimizer steps.

    Args:
        steps (`int`): Optimizer steps, >= 1.
        mntp (`float`): Weight l1 of masked next-token prediction, >= 0.
        sscl (`float`): Weight l2 of contrastive learning, >= 0.
        msg (`float`): Weight l3 of missing-span generation, >= 0.
    """

    steps: int
    mntp: float
    sscl: float
    msg: float


def parse_phases(entries: Sequence[str]) -> tuple[LossPhase, ...]:
    """Read phases as they are written on a command line.

    Args:
        entries (list of `str`): One per phase, in order: `"steps:mntp,sscl,msg"`.

    Returns:
        `tuple[LossPhase, ...]`: at least one phase.

    Raises:
        ValueError: listing everything that is wrong with every entry.

    Source: MAGNET (Khosla et al. 2025), training details; the weights are its l1, l2 and l3.

    Example:
        >>> parse_phases(["3400:1,0,1", "800:1,9,1"])[1]
        LossPhase(steps=800, mntp=1.0, sscl=9.0, msg=1.0)
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence) or not len(entries):
        raise ValueError(f"The loss phases are {entries!r}; pass a list of 'steps:mntp,sscl,msg', at least one.")
    phases, complaints = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            phase = _read(str(entry))
        except ValueError:
            complaints.append(f"phase {number}, {entry!r}: write it as 'steps:mntp,sscl,msg', such as '800:1,9,1'.")
            continue
        phases.append(phase)
        complaints += [f"phase {number}, {entry!r}: {complaint}" for complaint in _complaints(phase)]
    if complaints:
        raise ValueError("\n- ".join(["The loss phases cannot be used:", *complaints]))
    return tuple(phases)


def phase_at(phases: Sequence[LossPhase], step: int) -> LossPhase:
    """Find the phase that an optimizer step belongs to.

    Args:
        phases (list of `LossPhase`): In order, at least one.
        step (`int`): Optimizer steps done before this one, >= 0.

    Returns:
        `LossPhase`: the last one stays in force after its end.

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
    """Count the optimizer steps before a step that had a contrastive loss.

    Args:
        phases (list of `LossPhase`): In order, at least one.
        step (`int`): Optimizer steps done, >= 0.

    Returns:
        `int`: steps with a contrastive weight above 0; a position in the stream of pairs that needs no state.

    Example:
        >>> contrastive_steps_before(parse_phases(["3400:1,0,1", "800:1,9,1"]), 3500)
        100
    """
    count = 0
    for phase in phases[:-1]:
        steps_in_phase = min(step, phase.steps)
        count += steps_in_phase if phase.sscl > 0 else 0
        step -= steps_in_phase
    return count + (step if phases[-1].sscl > 0 else 0)


def _read(entry: str) -> LossPhase:
    """Split one entry into its numbers; any ValueError means that it is malformed."""
    steps, weights = entry.split(":")
    mntp, sscl, msg = (float(weight) for weight in weights.split(","))
    return LossPhase(int(steps), mntp, sscl, msg)


def _complaints(phase: LossPhase) -> list[str]:
    """Say what is wrong with the numbers of a phase."""
    complaints = []
    if phase.steps < 1:
        complaints.append(f"{phase.steps} steps; give it at least one, or leave the phase out.")
    if phase.steps > MOST_STEPS:
        complaints.append(f"{len(str(phase.steps))} digits of steps; give it {MOST_STEPS} at most.")
    weights = {"mntp": phase.mntp, "sscl": phase.sscl, "msg": phase.msg}
    complaints += [
        f"the weight of {name} is {weight}; pass a finite number, 0 or above."
        for name, weight in weights.items()
        if not (weight >= 0 and math.isfinite(weight))
    ]
    if not any(weights.values()):
        complaints.append("all weights are 0; nothing would be trained, give one objective a weight.")
    return complaints


__all__ = ["MOST_STEPS", "LossPhase", "contrastive_steps_before", "parse_phases", "phase_at"]
