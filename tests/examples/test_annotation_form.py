"""Test that the form escapes texts, hides authors, keeps answers, and that foreign answers are refused."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from examples.evaluate.parts.annotation_form import make_form, read_answers, read_key, render_form
from examples.evaluate.parts.fill_systems import StoryBlank

from .html_page import ParsedPage

GAPS = [StoryBlank(f"Tom fell {n} times.", "He cried.", f" Mum came at {n}.") for n in range(6)]
SYSTEMS = ("MAGNET", "zero-shot, blank", "unidirectional")
FILLS = {name: [f"Sentence {n} of kind {'abc'[k]}." for n in range(6)] for k, name in enumerate(SYSTEMS)}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script> \" ' ` & &lt;img src=x onerror=alert(1)>",
    "\u202eright to left\u2066 \u05e9\u05dc\u05d5\u05dd \u2028 line",
    "__FORM_DATA__ ${1} \\u003c",
    "",
    "<b>bold</b>",
]


def form_of(blanks=GAPS, fills=FILLS, annotators=2, seed=0):
    shown, key = make_form(blanks, fills, annotators=annotators, seed=seed)
    return shown, {**key, "systems": dict.fromkeys(fills, {})}


def act(tmp_path, shown, *actions):
    """Run the page's JavaScript outside a browser and return what the page shows."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the form's JavaScript with")
    page = tmp_path / "form.html"
    page.write_text(render_form(shown), encoding="utf-8")
    script = Path(__file__).with_name("form_page.js")
    done = subprocess.run(
        [node, str(script), str(page)], input=json.dumps(actions), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", range(20))
def test_form_does_not_depend_on_which_system_wrote_a_fill(seed):
    """Per story the systems' fills change hands at random: not a byte of the form follows."""
    draw = np.random.default_rng(seed)
    hands = [draw.permutation(len(SYSTEMS)) for _ in GAPS]
    changed = {
        name: [FILLS[SYSTEMS[hands[story][k]]][story] for story in range(len(GAPS))] for k, name in enumerate(SYSTEMS)
    }
    assert changed != FILLS
    (one, key), (other, changed_key) = form_of(seed=seed), form_of(fills=changed, seed=seed)
    assert render_form(one) == render_form(other)
    assert key["items"] != changed_key["items"]


def test_form_contains_no_system_name_and_key_contains_all_owners():
    shown, key = form_of()
    page = render_form(shown)
    for name in (*SYSTEMS, "magnet", "zero-shot", "He cried."):
        assert name.lower() not in page.lower()
    assert set(shown["items"][0]) == {"id", "prefix", "fill", "suffix"}
    by_id = {item["id"]: item for item in shown["items"]}
    assert len(by_id) == 18 and by_id.keys() == key["items"].keys()
    for item, owner in key["items"].items():
        (system,) = owner["systems"]
        assert by_id[item]["fill"] == FILLS[system][owner["story"]]
        assert by_id[item]["prefix"] == GAPS[owner["story"]].prefix


def test_hostile_text_is_escaped(tmp_path):
    blanks = [StoryBlank(text or "x", "", f" {text}") for text in HOSTILE]
    shown, _ = form_of(blanks, {"a": HOSTILE}, annotators=1)
    page = render_form(shown)
    assert ParsedPage(page).found == ParsedPage(render_form(form_of(annotators=1)[0])).found
    assert "alert(1)</" not in page and not re.search("[\u2028\u202e\u2066]", page)
    states = act(tmp_path, shown, ["choose", "1"], *[["show"], ["key", "ArrowRight"]] * len(HOSTILE))
    for position, state in enumerate(states):
        item = shown["items"][shown["orders"]["1"][position]]
        before, _, mark, _, after = state["story"]["children"]
        assert before == {"tag": "bdi", "children": [item["prefix"]]}
        assert after == {"tag": "bdi", "children": [item["suffix"]]}
        assert mark["tag"] == "mark"
        assert mark["children"][1] == {"tag": "bdi", "children": [item["fill"] or "(nothing was put in)"]}


def test_form_supports_keys_buttons_and_undo_and_stores_answers(tmp_path):
    shown, key = form_of()
    states = act(
        tmp_path, shown,
        ["show"], ["key", "1"],  # no annotator name, so no answer file
        ["choose", "1"], ["show"],
        ["key", "1"], ["key", "2"], ["click", "no"], ["show"],
        ["key", "ArrowLeft"], ["show"], ["click", "back"], ["show"], ["click", "yes"],
        ["key", {"key": "1", "ctrlKey": True}], ["key", {"key": "1", "repeat": True}], ["key", "3"],
        ["key", {"key": "2", "target": {"id": "annotator"}}],
        ["reload"], ["show"], ["choose", "2"], ["show"], ["choose", "1"], ["show"], ["download"],
    )  # fmt: skip
    start, chosen, three, third, second, reloaded, other, restored, saved = states
    assert not start["work"] and start["choices"] == ["1", "2"]
    assert chosen["work"] and chosen["place"] == "Story 1 of 18, 0 answered"
    assert three["place"] == "Story 4 of 18, 3 answered" and three["progress"] == 3
    assert (third["yes"], third["no"]) == ("false", "true")
    assert second["place"].startswith("Story 2") and (second["yes"], second["no"]) == ("false", "true")
    assert not reloaded["work"]
    assert other["place"] == "Story 1 of 18, 0 answered"
    assert restored["place"] == "Story 4 of 18, 3 answered"
    assert saved["name"] == "answers_1.json"
    order = [shown["items"][index]["id"] for index in shown["orders"]["1"]]
    content = json.loads(saved["content"])
    assert content == {
        "form": shown["form"], "annotator": "1", "answers": {order[0]: True, order[1]: True, order[2]: False}
    }  # fmt: skip


def test_invalid_answers_are_reported_together(tmp_path):
    _, key = form_of()
    whole = {"form": key["form"], "annotator": "1", "answers": dict.fromkeys(key["items"], True)}
    some = dict(list(whole["answers"].items())[:-2])
    stranger = {**whole, "annotator": "7", "answers": {**whole["answers"], "other": True}}
    odd = {**whole, "annotator": "2", "answers": {**whole["answers"], next(iter(key["items"])): 1}}
    given = {  # content and complaint of each file
        "good": (json.dumps(whole), None),
        "twice": (json.dumps(whole), "is of annotator 1, as is another file"),
        "part": (json.dumps({**whole, "annotator": "2", "answers": some}), "leaves 2 of 18 items without an answer"),
        "stranger": (json.dumps(stranger), "is of annotator '7'; the form has 1, 2"),
        "odd": (json.dumps(odd), "has answers such as 1; expected true or false"),
        "elsewhere": (json.dumps({**whole, "form": "0123"}), "answers form '0123'"),
        "list": ("[]", "holds no answers of a form"),
        "deep": ("[" * 100_000, "cannot be read as JSON"),
    }
    for name, (content, _) in given.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="The answers cannot be used") as raised:
        read_answers(key, [tmp_path / name for name in given])
    complaints = str(raised.value).split("\n- ")[1:]
    for name, (_, complaint) in given.items():
        matching = [complained for complained in complaints if f"{name}'" in complained]
        assert complaint is None or any(complaint in complained for complained in matching), name
    assert any("and answers 1 others" in complained for complained in complaints)
    assert len(complaints) == len(given)
    assert read_answers(key, [tmp_path / "good"]) == {"1": whole["answers"]}
    with pytest.raises(ValueError, match="is not the key of a form"):
        read_key(tmp_path / "good")
