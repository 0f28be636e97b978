"""Whether a value out of a JSON file has the shape that its reader expects, said place by place."""

from collections.abc import Iterator
from typing import Any

# Under this name of a shape stand all that it does not name; a question mark marks those that may be missing.
OTHERS = "*"
_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}


def misfits(value: Any, shape: Any, *, where: str) -> Iterator[str]:
    """What in a value is of another shape, as complaints.

    Args:
        value: As `json.loads` gives it.
        shape: `str`, `int`, `float` (whole ones, too), `dict` or `list` of whatever; `[shape]` for a list of such;
            `{"name": shape, "other?": shape, "*": shape}` for an object.
        where (`str`): What to call the value.

    Example:

        >>> list(misfits({"a": [1, "x"]}, {"a": [int], "b": str, "c?": str}, where="plan"))
        ["plan has no 'b'.", "plan.a[1] is 'x'; expected a whole number."]
    """
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    kinds: Any = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        yield f"{where} is {value!r:.60}; expected {_NAMES[kind]}."
    elif isinstance(shape, list):
        for place, one in enumerate(value):
            yield from misfits(one, shape[0], where=f"{where}[{place}]")
    elif isinstance(shape, dict):
        inner = {key.rstrip("?"): of_key for key, of_key in shape.items()}
        for key in shape:
            if not key.endswith("?") and key != OTHERS and key not in value:
                yield f"{where} has no {key!r}."
        for name, one in value.items():
            if name in inner or OTHERS in inner:
                yield from misfits(one, inner.get(name, inner.get(OTHERS)), where=f"{where}.{name}")


__all__ = ["OTHERS", "misfits"]
