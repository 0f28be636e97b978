"""Model cards and pages from hostile names, labels and texts: nothing in them becomes metadata or markup."""

import random
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt

from examples.evaluate.annotation_form import read_answers, read_key, render_form
from examples.evaluate.reporting.blocks import Answer, Bullets, Details, Grid, Heading, Link, Page, Story, Text, clean
from examples.evaluate.reporting.html_page import render_html
from examples.evaluate.reporting.markdown_page import render_markdown
from examples.fills_page import render_page
from modeling_magnet.publishing.card import (
    CardFacts,
    card_bytes,
    is_ours,
    is_readable,
    read_card,
    rename_card,
    with_tags,
    write_card,
)
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check, naming
from tests.trainer.tiny import tiny_model

KEYS = {
    "base_model",
    "base_model_relation",
    "datasets",
    "language",
    "library_name",
    "license",
    "model-index",
    "model_name",
    "pipeline_tag",
    "tags",
}
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PAGE_TAGS = {*"html head meta title style body main nav div article small mark ol span".split()}
REPORT_TAGS = {*"h1 h2 h4 p ul li a table thead tbody tr th td details summary strong blockquote br".split()}
CARD_TAGS = {*"h1 h2 p code pre table thead tbody tr th td ul li a".split()}


class Elements(HTMLParser):
    """The elements of a page, their attributes and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def harmless(page: str, tags: set[str]) -> str:
    """Nothing on a page runs, loads or leads elsewhere; returns its text."""
    found = Elements(page)
    check(found.tags <= tags, f"elements {sorted(found.tags - tags)} on a page")
    for name, value in found.attributes:
        check(not name.startswith("on"), f"a handler {name}={value!r}")
        is_address = name in ("href", "src")
        check(
            not is_address or (value or "").startswith(("https://arxiv.org/", "#", "data:image/svg+xml;base64,")),
            f"{value!r}",
        )
    return "".join(found.text)


@cache
def _named() -> Any:
    """A model whose settings a card may tell of."""
    return tiny_model()


def card(draw: random.Random, folder: Path) -> None:
    """A card has the metadata that it was given, no other; and what it shows is text."""
    shown, name = _named(), inputs.unicode_text(draw, 3) or "x"
    prompt = inputs.unicode_text(draw, 2)
    shown.config.magnet |= {"prompts": {prompt: "Prompt:"}, "default_prompt_name": draw.choice((None, prompt))}
    facts = CardFacts(
        base_model=draw.choice((None, "me/base", inputs.unicode_text(draw, 3))),
        datasets=[inputs.unicode_text(draw, 2) for _ in range(draw.randrange(3))],
        language=draw.choice(((), ("en",), ("no", "on"))),
        license=draw.choice((None, "apache-2.0", inputs.unicode_text(draw, 2) or None)),
        recipe=[(inputs.unicode_text(draw, 2), inputs.unicode_text(draw, 4)) for _ in range(draw.randrange(3))],
        results=[
            EvalResult(
                "text-generation",
                "held-out",
                inputs.unicode_text(draw, 2) or "d",
                "perplexity",
                draw.choice((2.0, 1e300, float("nan"), float("inf"), 3, 0.1234567)),
                metric_name=inputs.unicode_text(draw, 2) or None,
            )
            for _ in range(draw.randrange(2))
        ],
        notes=[inputs.unicode_text(draw, 4) for _ in range(draw.randrange(3))],
    )
    written = write_card(shown, name, facts)
    check(is_ours(written) and is_readable(written), "our own card cannot be read")
    parsed = ModelCard(written)
    data = parsed.data.to_dict()
    check(set(data) <= KEYS, f"metadata {sorted(set(data) - KEYS)}")
    # PyYAML reads some ends of lines as spaces.
    licenses, named = (
        [data.get("license") or "", facts.license or ""],
        [data.get("datasets") or [], list(facts.datasets)],
    )
    check(licenses[0].split() == licenses[1].split(), f"the license became {data.get('license')!r}")
    check([one.split() for one in named[0]] == [one.split() for one in named[1]], f"the datasets became {named[0]!r}")
    check(data["tags"][:1] == ["magnet"] and len(data["tags"]) == 4, f"tags {data['tags']}")
    rendered = MARKDOWN.render(parsed.text.partition("-->")[2])
    harmless(rendered, CARD_TAGS)
    (folder / "README.md").write_bytes(card_bytes(written))
    check(read_card(folder / "README.md") == written, "a card is not read as it was written")
    other = inputs.unicode_text(draw, 3) or "y"
    renamed = rename_card(written, other)
    check(is_readable(renamed), "a renamed card cannot be read")
    harmless(MARKDOWN.render(ModelCard(renamed).text.partition("-->")[2]), CARD_TAGS)


def foreign_cards(draw: random.Random, folder: Path) -> None:
    """Cards of people, of any bytes: renamed and tagged, or left as they are; never an error."""
    metadata = draw.choice(
        (
            "",
            "tags: [a]\n",
            "tags: a\n",
            "tags: {a: 1}\n",
            "tags: 3\n",
            "model-index: 3\n",
            "a: &a [*a]\n",
            "? [1]\n: 2\n",
            "model-index:\n- name: x\n  results: []\n",
            "- 1\n",
            "tags: [[a], 1]\n",
            "base_model: 2026-11-22\n",
            "!!python/object:os.system 1\n",
            "a: " + "[" * 200 + "\n",
            "tags: [null]\n",
            "no: on\n",
        )
    )
    text = f"---\n{metadata}{inputs.text(draw, 2) if draw.random() < 0.3 else ''}---\n{inputs.text(draw)}"
    if draw.random() < 0.6:
        text += "\n<!-- written by magnet -->\n# x\n" if draw.random() < 0.7 else "<!-- written by magnet"
    if draw.random() < 0.2:
        (folder / "README.md").write_bytes(inputs.mutated(draw, text.encode("utf-8", "surrogatepass")))
        text = read_card(folder / "README.md") or ""
        check((folder / "README.md").read_bytes() == card_bytes(text), "bytes of a card are not kept")
    renamed, tagged = rename_card(text, inputs.text(draw, 2)), with_tags(text, ["magnet", "x"])
    if not is_readable(text):
        check(renamed == tagged == text, "a card that cannot be read was changed")
    elif not is_ours(text):
        check(renamed == text, "a person's card was renamed")
        check(is_readable(tagged), f"a card that got tags cannot be read: {tagged!r}")


def fills(draw: random.Random, folder: Path) -> None:
    """A page of fills shows the texts as they are."""

    def fill() -> dict[str, Any]:
        parts = [inputs.unicode_text(draw, 2) for _ in range(draw.randrange(3))]
        whole = "".join(parts) if draw.random() < 0.7 else inputs.unicode_text(draw, 2)
        numbers = [draw.choice((-1.0, 0.0, -1e4, -5e-324)) for _ in parts]
        return {"text": whole, "tokens": parts, "logprobs": numbers, "logprob": sum(numbers), "mean_logprob": -1.0}

    pieces = [inputs.unicode_text(draw, 2) for _ in range(draw.randint(2, 3))]
    rows = [
        {"row": 0, "pieces": pieces, "fills": [[fill() for _ in range(draw.randint(1, 2))] for _ in pieces[1:]]},
        {"row": 1, "text": inputs.unicode_text(draw), "error": inputs.unicode_text(draw)},
    ]
    page = render_page(rows, title=inputs.unicode_text(draw, 2))
    text = harmless(page, PAGE_TAGS | REPORT_TAGS)
    plain = re.sub(r"\W", "", text)  # readers of HTML change ends of lines and characters that no page may hold
    for piece in pieces:
        check(re.sub(r"\W", "", piece) in plain, f"{piece!r} is not on the page")


def report(draw: random.Random, folder: Path) -> None:
    """A report's blocks, as HTML and as Markdown, are text."""

    def one() -> str:
        return inputs.text(draw, 4)

    story = Story(one(), one(), one(), [(one(), one())])
    blocks = [
        Heading(2, one()),
        Text(one(), draw.random() < 0.5),
        Bullets(one(), [one(), one()]),
        Grid([one(), one()], [[one(), one()]], [one()]),
        Details(one(), [Text(one())]),
        Link(one(), one()),
        Answer(one(), f"yes{one()}"),
        story,
    ]
    page = Page(one(), draw.sample(blocks, draw.randint(1, len(blocks))))
    for told in (render_html(page), render_markdown(page)):
        told.encode("utf-8")
        check(told == clean(told), "characters that turn text around")
    harmless(render_html(page), REPORT_TAGS | PAGE_TAGS)
    harmless(MARKDOWN.render(render_markdown(page)), REPORT_TAGS)


def forms(draw: random.Random, folder: Path) -> None:
    """What a form shows is data of its script; answers are those of its key, or all that is wrong is said."""
    shown = {
        "title": inputs.text(draw),
        "items": [{"before": inputs.text(draw), "fill": inputs.text(draw), "after": ""}],
    }
    page = render_form(shown)
    for tag in ("script", "style"):
        check(page.count(f"</{tag}") == render_form({}).count(f"</{tag}"), f"a text ends the {tag}")
    key = {"form": "f", "annotators": ["a", "b"], "items": {"i1": {}, "i2": {}}, "systems": ["x"]}
    (folder / "key.json").write_bytes(inputs.json_bytes(draw, inputs.changed(draw, key, chance=0.1)))
    given = {"form": "f", "annotator": "a", "answers": {"i1": True, "i2": False}}
    for name in ("one.json", "two.json"):
        (folder / name).write_bytes(
            inputs.json_bytes(
                draw,
                inputs.changed(draw, {**given, "annotator": name[:1].replace("o", "a").replace("t", "b")}, chance=0.2),
            )
        )
    with naming("key.json"):
        read_key(folder / "key.json")
    with naming(".json"):
        answers = read_answers(key, [folder / "one.json", folder / "two.json"])
    check(
        all(set(one) == {"i1", "i2"} and {*map(type, one.values())} == {bool} for one in answers.values()),
        f"{answers}",
    )


TARGETS = (
    Target(name="card", run=card, weight=3, seeds=30),
    Target(name="foreign_cards", run=foreign_cards, weight=8, seeds=60),
    Target(name="fills", run=fills, weight=30, seeds=150),
    Target(name="report", run=report, weight=6, seeds=50),
    Target(name="forms", run=forms, weight=20, seeds=100),
)
