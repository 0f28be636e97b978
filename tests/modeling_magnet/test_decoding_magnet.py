"""Test rules that end a fill early, and streaming, on real models."""

import pytest
import torch
from transformers import TextStreamer
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.decoding_magnet import SENTENCE_END
from modeling_magnet.spans_magnet import decode_fill

from .lifting import lift_logits, lifting

PREFIX, SUFFIX = "One day, Lily went to the park.", " She was happy."


@pytest.fixture(scope="module")
def model(stories260k):
    return MagnetLlamaForCausalLM.from_pretrained(stories260k)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" ran. Then he", " ran."),
        (' said "No!" and', ' said "No!"'),
        (" is 3.5 meters", None),
        (" really?! Yes.", " really?!"),
        (" ran.", None),
        ("他吃了苹果。然后他走了。", "他吃了苹果。"),
    ],
)
def test_sentence_ends(text, sentence):
    match = SENTENCE_END.search(text)
    assert (match and text[: match.end()]) == sentence


def test_a_fill_ends_after_its_first_sentence(model):
    """The rule truncates the fill of the same call without it, because the reserved positions are equal."""
    arguments = {"max_new_tokens": 60, "chunk_size": 60}
    whole = model.infill(PREFIX, SUFFIX, **arguments)
    output = model.infill(PREFIX, SUFFIX, stop_at_sentence_end=True, return_dict_in_generate=True, **arguments)
    (((fill,),),) = output.fills
    assert fill.text == whole[: SENTENCE_END.search(whole).end()]
    assert len(fill.token_ids) == len(fill.logprobs) < 60
    assert decode_fill(model.tokenizer, model.tokenizer(PREFIX)["input_ids"][1:], fill.token_ids) == fill.text


def test_a_fill_ends_after_a_stop_string(model):
    arguments = {"max_new_tokens": 40, "chunk_size": 40}
    whole = model.infill([PREFIX, "Lily saw"], [SUFFIX, " dog."], **arguments)
    stops = [whole[0][12:15], "no such text"]
    fills = model.infill([PREFIX, "Lily saw"], [SUFFIX, " dog."], stop_strings=stops, **arguments)
    for fill, text in zip(fills, whole, strict=True):
        assert fill == (text[: text.index(stops[0]) + 3] if stops[0] in text else text)
    assert model.infill(PREFIX, SUFFIX, stop_strings=stops[0], **arguments) == fills[0]


def test_criteria_get_left_contexts_and_end_spans(model):
    rows = []

    def three_tokens(input_ids, scores, **kwargs):
        rows.append(input_ids.tolist())
        return torch.tensor([row.count(2) == 0 and len(rows) == 3 for row in input_ids.tolist()])

    text = "Lily saw [blank] and [blank]."
    output = model.infill_blanks(
        text,
        max_new_tokens=6,
        heal=None,
        stopping_criteria=StoppingCriteriaList([three_tokens]),
        return_dict_in_generate=True,
    )
    first, second = (answers[0].token_ids for answers in output.fills[0])
    # The second span has the longer left context, so its row has no padding.
    assert (len(first), len(second)) == (6, 3)
    bare = model.tokenizer("Lily saw ", add_special_tokens=False)["input_ids"]
    assert rows[0][0][-len(bare) - 1 :] == [*bare, first[0]]
    assert rows[2][1][-3:] == second
    at_once = StoppingCriteriaList([MaxTimeCriteria(0)])
    output = model.infill(PREFIX, SUFFIX, max_new_tokens=30, stopping_criteria=at_once, return_dict_in_generate=True)
    assert len(output.fills[0][0][0].token_ids) == 1


class Recorder(BaseStreamer):
    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append(value.flatten().tolist())

    def end(self):
        self.events.append("end")


def test_a_healed_space_does_not_match_a_stop_string(model):
    arguments = {"max_new_tokens": 6}
    whole = model.infill("Lily went to the ", " with her mom.", **arguments)
    assert model.infill("Lily went to the ", " with her mom.", stop_strings=[" "], **arguments) == (
        whole[: whole.index(" ") + 1] if " " in whole else whole
    )


def test_nothing_is_streamed_if_logits_are_nan(tiny_model):
    recorder = Recorder()
    lift_logits(tiny_model, [7], torch.nan)
    with pytest.raises(ValueError, match="NaN logits"):
        tiny_model.infill("The cat", " mat.", max_new_tokens=4, streamer=recorder)
    assert recorder.events == []


@pytest.mark.parametrize("chunk_size", [3, 32])
def test_spans_are_streamed_one_after_another(model, chunk_size):
    text, arguments = "Lily saw [blank] and [blank].", {"max_new_tokens": [4, 7], "chunk_size": chunk_size}
    recorder = Recorder()
    fills = model.infill_blanks(text, streamer=recorder, **arguments)
    output = model.infill_blanks(text, return_dict_in_generate=True, **arguments)
    first, second = (answers[0].token_ids for answers in output.fills[0])
    prompts = [
        [1, *model.tokenizer("Lily saw", add_special_tokens=False)["input_ids"]],
        model.tokenizer("and", add_special_tokens=False)["input_ids"],
    ]
    expected = [prompts[0], *[[t] for t in first], "end", prompts[1], *[[t] for t in second], "end"]
    assert recorder.events == expected
    assert fills == model.infill_blanks(text, **arguments)


def test_a_token_that_a_rule_drops_is_not_streamed(model):
    recorder = Recorder()
    output = model.infill(
        PREFIX,
        SUFFIX,
        max_new_tokens=60,
        chunk_size=60,
        stop_at_sentence_end=True,
        streamer=recorder,
        return_dict_in_generate=True,
    )
    tokens = [event[0] for event in recorder.events[1:-1]]
    assert tokens == output.fills[0][0][0].token_ids


def test_a_model_trained_with_end_of_span_ends_its_fills(tiny_model):
    """With a likely EOS, a fill ends after one token, because the first token is never the end."""
    tiny_model.config.magnet["end_of_span"] = 8
    plain = tiny_model.infill("The cat", " mat.", max_new_tokens=6, return_dict_in_generate=True).fills[0][0][0]
    assert 1 <= len(plain.token_ids) <= 6
    lift_logits(tiny_model, tiny_model.tokenizer.eos_token_id)
    for chunk_size in (1, 32):
        output = tiny_model.infill(
            ["The cat", "A"],
            [" mat.", " b"],
            max_new_tokens=6,
            chunk_size=chunk_size,
            num_return_sequences=2,
            return_dict_in_generate=True,
        )
        assert [[len(fill.token_ids) for fill in blanks[0]] for blanks in output.fills] == [[1, 1], [1, 1]]
    exact = tiny_model.infill(
        "The cat", " mat.", max_new_tokens=6, stop_at_end_of_span=False, return_dict_in_generate=True
    )
    assert len(exact.fills[0][0][0].token_ids) == 6


class Collector(TextStreamer):
    """Collect the text that a TextStreamer would print."""

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, **options)
        self.texts, self.parts = [], []

    def on_finalized_text(self, text, stream_end=False):
        self.parts.append(text)
        if stream_end:
            self.texts.append("".join(self.parts))
            self.parts = []


STREAMED = [
    ("She ate the [blank] for lunch.", {}),
    ("Lily saw [blank] and  [blank].\n\t[blank]\r\n", {"max_new_tokens": [4, 1, 7]}),
    ("她的名字是[blank]。私は [blank] です 👍🏽[blank]!", {"chunk_size": 2}),
    ("Once upon a [blank] time", {"stop_strings": ["e", "n"]}),
    ("Once upon a [blank]", {"stop_at_sentence_end": True, "max_new_tokens": 40}),
    ("The little gi[blank]l went to the par", {"heal": "token"}),
    ("She [blank] the ", {"heal": None, "do_sample": True}),
]


@pytest.mark.parametrize("streamed", STREAMED)
@pytest.mark.parametrize("skip_prompt", [True, False])
def test_the_streamed_text_equals_the_fill(real_llama, streamed, skip_prompt):
    """Compare each character; with the prompt, each fill follows the text before it."""
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    text, options = streamed[0], {"max_new_tokens": 6, **streamed[1]}
    collector = Collector(model.tokenizer, skip_prompt=skip_prompt)
    torch.manual_seed(0)
    fills = model.infill_blanks(text, streamer=collector, **options)
    prompts = [""] * len(fills) if skip_prompt else text.split("[blank]")[: len(fills)]
    assert collector.texts == [prompt + fill for prompt, fill in zip(prompts, fills, strict=True)]
    torch.manual_seed(0)
    assert model.infill_blanks(text, **options) == fills


def test_streaming_keeps_characters_whole(space_run_model):
    """Bytes are held back until their character is complete."""
    ids = [space_run_model.tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(0xE4, 0xEA)]
    options = {"max_new_tokens": 9, "logits_processor": lifting(ids)}
    collector = Collector(space_run_model.tokenizer, skip_prompt=True)
    parts = []
    collector.on_finalized_text = lambda text, stream_end=False: parts.append(text)
    fill = space_run_model.infill("北", "京", streamer=collector, **options)
    assert len(fill) == 3
    assert parts == [*fill, ""]
    recorder = Recorder()
    space_run_model.infill("北", "京", streamer=recorder, **options)
    assert len(recorder.events) == 11, "a token streamer receives all tokens"
