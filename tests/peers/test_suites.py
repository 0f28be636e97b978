"""Test that whatever passes on a stock class passes on ours."""

import pytest

from . import suites


def test_unexpected_failure_of_ours_is_a_complaint():
    allowed = next(iter(suites.ALLOWED))
    stock = {("TestLlamaStock", name): name != "c" for name in ("a", "b", "c", "d", allowed)}
    ours = {("TestLlamaOurs", name): name == "a" for name in ("a", "b", "c", allowed)}
    fails, skipped = suites.compare(stock | ours)
    assert "TestLlamaOurs::b fails" in fails and "TestLlamaOurs::d is skipped" in skipped
    assert suites.compare({}), "nothing ran"


@pytest.mark.parametrize(
    ("lay_out", "wanted"),
    [
        pytest.param(suites.lay_out_common_tests, "TestLlama or TestGemma3", marks=pytest.mark.long),
        pytest.param(suites.lay_out_common_tests, "TestMistral or TestQwen3", marks=pytest.mark.nightly),
        pytest.param(
            suites.lay_out_adapter_tests, "LoraConfig and (LlamaFor or qwen2 or Gemma3)", marks=pytest.mark.nightly
        ),
    ],
    ids=["transformers, often", "transformers, other families", "peft"],
)
def test_what_passes_on_stock_classes_passes_on_ours(tmp_path, lay_out, wanted):
    pytest.importorskip("parameterized", reason="the suite of transformers needs it: pip install -e '.[dev]'")
    try:
        lay_out(tmp_path)
    except OSError as error:
        pytest.skip(str(error))
    assert suites.compare(suites.outcomes(tmp_path, wanted)) == []
