"""Limit what a visitor may request, and show errors."""

import functools
import html
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from modeling_magnet.tokenization_magnet import check_text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limit one call, so that no visitor keeps the others waiting for long."""

    characters: int = 4000
    blanks: int = 8
    answers: int = 5
    fill_tokens: int = 32
    lines: int = 12
    new_tokens: int = 200
    grid_tokens: int = 40


LIMITS = Limits()


def checked_text(text: object, *, what: str) -> str:
    """Return a visitor's text if it is a string within the LIMITS."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is empty. Type some text first.")
    if len(text) > LIMITS.characters:
        raise ValueError(
            f"{what} has {len(text):,} characters; this page takes {LIMITS.characters:,} at most. Shorten it."
        )
    check_text(text, name=what)
    return text


def checked_number(value: object, *, what: str, minimum: int, maximum: int) -> int:
    """Return a visitor's whole number, which may not come from the slider on the page.

    Example:
        >>> checked_number(3.0, what="answers", minimum=1, maximum=5)
        3
    """
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not is_whole or not minimum <= value <= maximum:  # type: ignore[operator]
        raise ValueError(f"{what} is {value!r}; expected a whole number from {minimum} to {maximum}.")
    return int(value)  # type: ignore[call-overload]


def render_error(message: str) -> str:
    """Render an error for the page."""
    return f'<p class="problem" role="alert">{html.escape(message)}</p>'


def shows_problems(function: Callable[..., str]) -> Callable[..., str]:
    """Show errors of a request in place of its answer; print unexpected errors only in the terminal."""

    @functools.wraps(function)
    def shown(*arguments: object) -> str:
        try:
            return function(*arguments)
        except Exception as error:
            return render_error(problem(error))

    return shown


def problem(error: BaseException) -> str:
    """Return the message for the visitor; print any error but a `ValueError` in full for the operator."""
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    return "Something went wrong on the server. Its terminal says what; try another text."
