"""Convert fills to JSON rows, and to an HTML page that colors each token by its probability."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

# Style of a token; `render_token` sets the hue.
TOKEN_STYLE = """
.token { border-radius: 0.2em; background: color-mix(in srgb, hsl(var(--hue) 75% 50%) 40%, transparent); }
"""
STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
article {{ border-top: 1px solid #8888; padding: 0.5rem 0; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.5rem 0; }}
{TOKEN_STYLE.strip()}
.error {{ color: #c33; }}
small, summary {{ opacity: 0.75; }}
"""


def describe(model: Any, fill: Any) -> dict[str, Any]:
    """Return a fill as JSON values, with the text of each token; the texts join to the fill."""
    return {
        "text": fill.text,
        "tokens": fill.tokens or spell(model.tokenizer, fill),
        "logprobs": [round(value, 4) for value in fill.logprobs],
        "logprob": round(fill.logprob, 4),
        "mean_logprob": round(fill.mean_logprob, 4),
    }


def spell(tokenizer: Any, fill: Any) -> list[str]:
    """Return the text of each token of a causal fill; a character belongs to its last token."""
    whole = tokenizer.decode(fill.token_ids)
    left_out = len(whole) - len(fill.text)  # the leading space, which a decoder strips or the context contains
    ends, end = [], 0
    for count in range(1, len(fill.token_ids) + 1):
        so_far = tokenizer.decode(fill.token_ids[:count])
        if whole.startswith(so_far):
            end = len(so_far)
        ends.append(max(end - left_out, 0))
    ends[-1:] = [len(fill.text)] * bool(ends)
    return [fill.text[start:end] for start, end in pairwise([0, *ends])]


def render_page(rows: Iterable[Mapping[str, Any]], *, title: str) -> str:
    """Render one self-contained HTML page; all text is escaped."""
    body = "\n".join(_article(row) for row in rows)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<p>{render_scale()}</p>\n{body}\n</body></html>\n"
    )


def render_scale() -> str:
    """Render a legend of the tokens' colors."""
    shares = (0.9, 0.5, 0.1, 0.01, 0.001)
    return "Probability of a token: " + " ".join(_token(f"{100 * share:g}%", math.log(share)) for share in shares)


def _article(row: Mapping[str, Any]) -> str:
    """Render one text: its best fills in place, other candidates below."""
    label = f"<small>{int(row['row']) + 1}</small>"
    if "error" in row:
        text, error = html.escape(row["text"]), html.escape(row["error"])
        return f'<article>{label}<p>{text}</p><p class="error">{error}</p></article>'
    best = [answers[0] for answers in row["fills"]]
    parts = [html.escape(row["pieces"][0])]
    for fill, text_part in zip(best, row["pieces"][1:], strict=True):
        parts += [render_fill(fill), html.escape(text_part)]
    text = "".join(parts)
    details = ""
    if any(len(answers) > 1 for answers in row["fills"]):
        items = "".join(_alternatives(number, answers) for number, answers in enumerate(row["fills"], start=1))
        details = f"<details><summary>all answers</summary>{items}</details>"
    return f"<article>{label}<p>{text}</p>{details}</article>"


def _alternatives(number: int, answers: Sequence[Mapping[str, Any]]) -> str:
    """Render the candidates of one blank with their log-probabilities."""
    items = "".join(
        f"<li>{render_fill(answer)} <small>{answer['logprob']:.2f} nats</small></li>" for answer in answers
    )
    return f"<p>Blank {number}</p><ol>{items}</ol>"


def render_fill(fill: Mapping[str, Any]) -> str:
    """Render the tokens of a fill; in one color if the tokens do not join to its text."""
    if "".join(fill["tokens"]) == fill["text"]:
        shown = zip(fill["tokens"], fill["logprobs"], strict=True)
        return "".join(_token(text, logprob) for text, logprob in shown if text)
    return _token(fill["text"], fill["mean_logprob"])


def _token(text: str, logprob: float) -> str:
    """Render a token with a hue from red (a thousandth) to green (certain) and its probability as a tooltip."""
    hue = 120 * min(max(1 + logprob / math.log(1000), 0.0), 1.0)
    return (
        f'<span class="token" style="--hue:{hue:.0f}" title="{math.exp(logprob):.2%}, {logprob:.2f} nats">'
        f"{html.escape(text)}</span>"
    )
