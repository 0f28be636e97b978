"""Write pages and model cards with hostile texts: they show text, not markup, and their metadata stay as given."""

import math
from html.parser import HTMLParser

from huggingface_hub import EvalResult, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from examples.demo.fills import render_page
from modeling_magnet.publishing.card import MARK, CardFacts, parse_card, rename_card, with_tags, write_card

from .strategies import any_text, fuzz, mostly, unicode_text
from .test_calls import kept_model

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "[link](javascript:alert(1)) ![image](http://x)",
    "| cell | `code` *stars* __bold__ ~~gone~~ &lt;script> \\",
    "`a``<script>alert(1)</script>` ```<script>`",
    "# heading\n\n<script>alert(1)</script>\n\n- item\n---\n    code",
)
CARD_TAGS = {*"h1 h2 p code pre table thead tbody tr th td ul li a".split()}
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
METADATA = (
    *("", "tags: [a]\n", "tags: a\n", "tags: {a: 1}\n", "tags: 3\n", "model-index: 3\n", "a: &a [*a]\n", "- 1\n"),
    *("? [1]\n: 2\n", "model-index:\n- name: x\n  results: []\n", "tags: [[a], 1]\n", "base_model: 2026-11-22\n"),
    *("!!python/object:os.system 1\n", "a: " + "[" * 200 + "\n", "tags: [null]\n", "no: on\n"),
)
hostile = mostly(unicode_text, st.sampled_from(HOSTILE))


class Elements(HTMLParser):
    """Collect the elements of a page and its text, and check that no script, event handler or address runs."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = set(), ""
        self.feed(page)
        self.close()
        assert not self.tags & {"script", "img", "iframe", "object", "svg"}

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("href", "src") or value.startswith(("https:", "data:image/svg+xml;base64,"))

    def handle_data(self, data):
        self.text += data

    def shows(self, text):
        """Return whether the page has the letters of a text; HTML parsers change line ends and odd characters."""
        return "".join(filter(str.isalnum, text)) in "".join(filter(str.isalnum, self.text))


def fill_of(tokens, text):
    text = "".join(tokens) if text is None else text
    return {"text": text, "tokens": tokens, "logprobs": [-1e4] * len(tokens), "logprob": -1.0, "mean_logprob": -1.0}


some_fill = st.builds(fill_of, st.lists(hostile, max_size=2), mostly(st.none(), hostile))


@fuzz(100)
@given(
    hostile, st.lists(hostile, min_size=2, max_size=3), st.tuples(some_fill, some_fill), st.tuples(hostile, hostile)
)
def test_page_of_fills_shows_texts(title, pieces, fills, error):
    rows = [
        {"row": 0, "pieces": pieces, "fills": [list(fills)] * (len(pieces) - 1)},
        {"row": 1, "text": error[0], "error": error[1]},
    ]
    page = Elements(render_page(rows, title=title))
    assert all(page.shows(text) for text in (title, *pieces, *(fill["text"] for fill in fills), *error))


@fuzz(40)
@given(
    st.tuples(hostile, hostile, hostile, hostile, hostile, hostile),
    *(st.sampled_from((None, "me/base")) | hostile, st.sampled_from((None, "apache-2.0")) | hostile),
    st.sampled_from((2.0, 1e300, math.nan)),
)
def test_model_card_shows_texts_and_has_the_given_metadata(texts, base, licensed, value):
    name, prompt, row, cell, note, data = (text.strip() or "x" for text in texts)
    model = kept_model()
    model.config.magnet |= {"prompts": {prompt: "Prompt:"}, "default_prompt_name": prompt}
    result = EvalResult("text-generation", "held-out", data, "perplexity", value, metric_name=data)
    facts = CardFacts(
        base_model=base,
        datasets=[data],
        license=licensed or None,
        recipe=[(row, cell)],
        results=[result],
        notes=[note],
    )
    written = write_card(model, name, facts)
    assert rename_card(written, "me/other") == write_card(model, "me/other", facts)
    card = ModelCard(written)
    assert MARK in written and len(card.data.tags) == 4 and card.data.tags[0] == "magnet"
    assert (card.data.license or "").split() == (licensed or "").split()  # PyYAML reads some line ends as spaces
    page = Elements(MARKDOWN.render(card.text.partition("-->")[2]))
    assert page.tags <= CARD_TAGS and all(page.shows(text) for text in (name, prompt, row, cell, note))


@fuzz(60)
@given(
    st.sampled_from(METADATA), mostly(st.just(""), any_text), any_text, any_text, st.sampled_from(("", f"\n{MARK}\n"))
)
def test_foreign_cards_are_kept_or_tagged(metadata, extra, body, name, mark):
    text = f"---\n{metadata}{extra}---\n{body}{mark}"
    renamed, tagged = rename_card(text, name), with_tags(text, ["magnet", "x"])
    if parse_card(text) is None:
        assert renamed == tagged == text
    elif MARK not in text:
        assert renamed == text and parse_card(tagged) is not None
