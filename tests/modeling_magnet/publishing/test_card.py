"""Test the model card: valid metadata, facts of the run, code that runs, escaped markup."""

import re

import pytest
from huggingface_hub import EvalResult, ModelCard
from peft import LoraConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.publishing.card import (
    MARK,
    NOT_RECORDED,
    CardFacts,
    is_hub_id,
    rename_card,
    with_tags,
    write_card,
)

FACTS = CardFacts(
    base_model="meta-llama/Llama-2-7b-hf",
    datasets=["Salesforce/wikitext"],
    language=["en"],
    license="llama2",
    recipe=[("steps", "4,200"), ("odd | value", "<b>bold</b>\nnext line")],
    results=[
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="Held-out texts",
            metric_type="perplexity",
            metric_name="infilling perplexity",
            metric_value=12.3456,
        )
    ],
    notes=["A small model."],
)


def test_the_metadata_are_what_the_hub_reads(tiny_model):
    card = ModelCard(write_card(tiny_model, "me/mine", FACTS))
    data = card.data
    assert (data.license, data.language, data.base_model) == ("llama2", ["en"], "meta-llama/Llama-2-7b-hf")
    assert data.library_name == "transformers" and data.pipeline_tag == "feature-extraction"
    assert data.datasets == ["Salesforce/wikitext"] and {"magnet", "infilling"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("perplexity", 12.3456, "Held-out texts")
    assert data.model_name == "me/mine"
    assert "| Held-out texts: infilling perplexity | 12.35 |" in card.text
    assert "- A small model." in card.text


def test_values_cannot_break_the_table(tiny_model):
    text = write_card(tiny_model, "me/mine", FACTS)
    assert r"| odd \| value | &lt;b>bold&lt;/b> next line |" in text


def test_a_directory_is_not_a_hub_id_and_its_path_is_not_published(tiny_model, tmp_path):
    text = write_card(tiny_model, "mine", CardFacts(base_model=str(tmp_path)))
    assert ModelCard(text).data.get("base_model") is None
    assert str(tmp_path) not in text and f"`{tmp_path.name}`" in text
    assert is_hub_id("me/mine") and is_hub_id("gpt2")
    assert not is_hub_id(str(tmp_path)) and not is_hub_id("a/b/c") and not is_hub_id(None)


@pytest.mark.parametrize("facts", [FACTS, CardFacts()], ids=["facts", "model alone"])
def test_a_card_is_renamed_throughout_and_nowhere_else(tiny_model, facts):
    text = write_card(tiny_model, "out/mine", facts)
    renamed = rename_card(text, "me/other")
    assert "out/mine" not in renamed
    assert renamed == write_card(tiny_model, "me/other", facts)
    for by_hand in ("---\nlicense: mit\n---\n\nNo title.\n", "# Mine\n"):
        assert rename_card(by_hand, "me/other") == by_hand
    assert ModelCard(with_tags(renamed, ["mine", "magnet"])).data.tags[-1] == "mine"


def test_an_adapters_card_says_in_which_modes_it_is_on(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "base")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    always = write_card(model, "me/mine")
    assert "is on in every mode" in always and ModelCard(always).data.library_name == "peft"
    model.set_adapter_modes(["bidirectional", "infill"])
    bound = write_card(model, "me/mine")
    assert "is on in bidirectional and infill mode and off in all others" in bound
    assert "AutoMagnetForCausalLM" in bound and "trust_remote_code" not in bound
    assert ModelCard(write_card(model, "me/mine", merged=True)).data.library_name == "transformers"


def test_the_code_of_a_card_runs(tiny_model, tmp_path, monkeypatch):
    """Run all examples except vLLM's, which is only compiled."""
    folder = tmp_path / "mine"
    tiny_model.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == card.count("```") / 2 == 4 and "vllm" in blocks[-1]
    compile(blocks.pop(), "README.md", "exec")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    model = MagnetLlamaForCausalLM.from_pretrained(folder)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    [first, second] = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert card.count("```") == 4
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    exec(compile(second, "README.md", "exec"), names)
    assert (tmp_path / "merged" / "config.json").is_file()


def test_a_card_stays_with_its_model(tiny_model, tmp_path):
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    tiny_model.save_pretrained(first)
    assert NOT_RECORDED in (first / "README.md").read_text()
    (first / "README.md").write_text("# Mine\n\nBy hand.\n")
    MagnetLlamaForCausalLM.from_pretrained(first).save_pretrained(second)
    assert (second / "README.md").read_text() == "# Mine\n\nBy hand.\n"
    (second / "README.md").write_text("# Yours\n\nBy hand.\n")
    MagnetLlamaForCausalLM.from_pretrained(first).save_pretrained(second)
    assert (second / "README.md").read_text() == "# Yours\n\nBy hand.\n"
    other.mkdir()
    (other / "README.md").write_text("# Notes\n")
    tiny_model.save_pretrained(other)
    assert (other / "README.md").read_text() == "# Notes\n", "a card that nobody wrote replaces nothing"
    tiny_model.card = "# Set\n"
    tiny_model.save_pretrained(other)
    assert (other / "README.md").read_text() == "# Set\n"
    model = MagnetLlamaForCausalLM.from_pretrained(first)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    assert "By hand" not in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    "content",
    [b"---\ntags: [a\n---\n# Mine\n", b"---\n- a\n---\n# Mine\n", b"# Mine \xff\xfe\r\n", b"---\neval: \xff\n---\n"],
    ids=["yaml", "list", "encoding", "metadata"],
)
def test_a_card_that_cannot_be_parsed_is_kept(tiny_model, tmp_path, content):
    tiny_model.save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "README.md").write_bytes(content)
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "first")
    for name in ("first", "second"):
        loaded.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "README.md").read_bytes() == content
    broken = "---\ntags: [a\n---\n# Mine\n"
    assert with_tags(broken, ["b"]) == broken
    assert rename_card(f"{broken}{MARK} -->\n", "b") == f"{broken}{MARK} -->\n"


def test_a_tag_may_be_a_single_string():
    assert ModelCard(with_tags("---\ntags: cool\n---\n# Mine\n", ["mine"])).data.tags == ["cool", "mine"]


def test_a_generated_card_is_named_after_its_directory(tiny_model, tmp_path, monkeypatch):
    tiny_model.card = write_card(tiny_model, "first", FACTS)
    tiny_model.save_pretrained(tmp_path / "first")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    MagnetLlamaForCausalLM.from_pretrained(tmp_path / "first").save_pretrained(".")
    assert (tmp_path / "here" / "README.md").read_text() == write_card(tiny_model, "here", FACTS)
    tiny_model.card = None
    tiny_model.save_pretrained(".")
    assert "# here\n" in (tmp_path / "here" / "README.md").read_text()


def test_the_card_of_an_adapter_is_replaced_by_that_of_a_checkpoint(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "base")
    plain = ModelCard((tmp_path / "base" / "README.md").read_text())
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "target")
    assert ModelCard((tmp_path / "target" / "README.md").read_text()).data.library_name == "peft"
    tiny_model.save_pretrained(tmp_path / "target")
    card = ModelCard((tmp_path / "target" / "README.md").read_text())
    assert card.data.library_name == "transformers" and card.text == plain.text.replace("base", "target")


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\nb", "a\\b", "{a}", "#1: b", "😀é", "[a]*"])
def test_odd_names_break_neither_code_nor_metadata(tiny_model, tmp_path, name):
    tiny_model.save_pretrained(tmp_path / name)
    text = (tmp_path / name / "README.md").read_text()
    assert MARK in text and ModelCard(text).data.model_name == name
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        assert name in compile(block, "README.md", "exec").co_consts
    renamed = rename_card(write_card(tiny_model, "mine", FACTS), name)
    assert renamed == write_card(tiny_model, name, FACTS)
    assert rename_card(renamed, "mine") == write_card(tiny_model, "mine", FACTS)


def test_notes_and_numbers_are_escaped(tiny_model):
    results = [
        EvalResult("text-generation", "held-out", "Texts", "perplexity", value)
        for value in (float("inf"), float("nan"), 2.0)
    ]
    text = write_card(
        tiny_model,
        "mine",
        CardFacts(results=results, notes=["# One\n# two", "- three\n\nfour", "---", "+", "1. five"]),
    )
    assert "\n- \\# One # two\n- \\- three four\n- \\---\n- \\+\n- 1\\. five\n" in text
    assert "| Texts: perplexity | inf |" in text and "| Texts: perplexity | nan |" in text
    assert [result.metric_value for result in ModelCard(text).data.eval_results] == [2.0]
    assert ModelCard(write_card(tiny_model, "mine", CardFacts(results=results[:1]))).data.get("model-index") is None


GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


@pytest.mark.parametrize(
    ("model_type", "vocab_size", "base", "of_gemma"),
    [
        ("gemma3_text", 262_144, "some-folder", True),
        ("gemma3_text", 300, "google/gemma-3-270m", True),
        ("gemma3_text", 300, "some-folder", False),
        ("llama", 262_144, "gemma-like", False),
    ],
)
def test_models_derived_from_gemma_name_its_terms(tiny_model, model_type, vocab_size, base, of_gemma):
    tiny_model.config.model_type, tiny_model.config.vocab_size = model_type, vocab_size
    text = write_card(tiny_model, "mine", CardFacts(base_model=base))
    assert (ModelCard(text).data.license == "gemma") == of_gemma == (GEMMA_TERMS in text)
    other = ModelCard(write_card(tiny_model, "mine", CardFacts(base_model=base, license="other")))
    assert other.data.license == "other" and (GEMMA_TERMS in other.text) == of_gemma
