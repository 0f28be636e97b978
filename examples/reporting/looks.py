"""How the report's figures show a row: colour, line and marker of a system, the same in all of them."""

from typing import Any

# The same bytes from the same records, and no formulas in names.
STYLE: Any = {"svg.hashsalt": "magnet", "text.parse_math": False, "font.size": 9}
# A system has one colour in all figures; how it was read or trained besides is told by the line. Okabe and Ito's
# colours, told apart with any kind of sight, and for the last two Tol's; yellow is too light for lines.
COLORS = {
    "base": "#000000",
    "MAGNET": "#0072b2",
    "LLM2Vec recipe": "#d55e00",
    "MNTP": "#009e73",
    "MTP": "#cc79a7",
    "SSCL": "#56b4e9",
    "MNTP + MSG": "#e69f00",
    "SSCL + MSG": "#882255",
    "Echo": "#999933",
}
MARKERS = "xos^vDPX*"
PEER_COLOR = "0.45"
STYLES = {"": "-", "infill": "-", "left": ":", "mixture": "-.", "causal": ":"}
QUOTED_COLOR = "0.8"


def look_of(name: str) -> tuple[str, str, str]:
    """Colour, line and marker of a row."""
    system, _, rest = name.partition(", ")
    marker = MARKERS[list(COLORS).index(system)] if system in COLORS else "."
    return COLORS.get(system, PEER_COLOR), STYLES.get(rest, "--"), marker


def short(name: str) -> str:
    """A name as a figure has room for it."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= 32 else f"{name[:31]}…"


__all__ = ["COLORS", "QUOTED_COLOR", "STYLE", "look_of", "short"]
