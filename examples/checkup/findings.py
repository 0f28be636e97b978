"""Represent findings: each is one row of the table, and a check that raises an error becomes a failed row."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not applicable"]
# A compiler's message can be a whole log, but a row is one line.
LONGEST_MESSAGE = 400


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table."""

    name: str
    outcome: Outcome
    detail: str


def judged(name: str, good: bool, detail: str) -> Finding:
    """Return a row that passes or fails."""
    return Finding(name=name, outcome="pass" if good else "fail", detail=detail)


def not_applicable(name: str, reason: str) -> Finding:
    """Return a row for something that this model does not have; it counts neither as passed nor as failed."""
    return Finding(name=name, outcome="not applicable", detail=reason)


def examine(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the rows of a check; an exception becomes a failed row, so that later checks still run."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(name=name, outcome="fail", detail=f"{type(error).__name__}: {in_one_line(error)}")


def in_one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, shortened if it is a log."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
