"""Run the guide's example of a user's family, whose code is saved with its checkpoint."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationMixin, MistralForCausalLM

from modeling_magnet import FAMILIES, AutoMagnetForCausalLM, MagnetMixin

from ..scripts import run_python
from .test_families_magnet import make_config, write_decoder

GUIDE = Path(__file__).resolve().parents[2] / "examples" / "README.md"
IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])


@pytest.fixture
def own_class(tmp_path, monkeypatch):
    """Return the class of the guide, imported from a file."""
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        if "Starcoder2" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_family.py").write_text(code)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_family", raising=False)
    import my_family

    monkeypatch.setitem(FAMILIES, "starcoder2", my_family.MagnetStarcoder2ForCausalLM)
    yield my_family.MagnetStarcoder2ForCausalLM
    sys.modules.pop("my_family", None)


@pytest.fixture
def plain(tiny_tokenizer, tmp_path):
    return write_decoder(tmp_path / "plain", "starcoder2", tiny_tokenizer, sliding_window=None)


@torch.no_grad()
def test_it_generates_encodes_and_infills(own_class, plain):
    model, info = AutoMagnetForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert type(model) is own_class and not info["missing_keys"] and not info["unexpected_keys"]
    stock = AutoModelForCausalLM.from_pretrained(plain)
    assert torch.equal(model(IDS).logits, stock(IDS).logits)
    changed = IDS.clone()
    changed[0, -1] = 7
    moved = (model(IDS, mode="bidirectional").logits - model(changed, mode="bidirectional").logits).abs().amax(-1)
    assert (moved > 0).all()
    assert model.encode(["The cat"]).shape == (1, 32)
    assert isinstance(model.infill("The cat", " mat.", max_new_tokens=3), str)


@pytest.mark.long
def test_its_code_travels_with_the_checkpoint(own_class, plain, tmp_path):
    model = AutoMagnetForCausalLM.from_pretrained(plain)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    code = (folder / "my_family.py").read_text()
    assert "from .modeling_magnet import MagnetMixin" in code and (folder / "modeling_magnet.py").is_file()
    program = (
        "import sys; sys.modules['modeling_magnet'] = None\n"
        "import numpy as np\n"
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"np.save({str(tmp_path / 'vectors.npy')!r}, model.encode(['The cat']))\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    run_python(program, folder=tmp_path / "elsewhere")
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), model.encode(["The cat"]))
    names = {file.name for file in folder.glob("*.py")}
    assert {file.name for file in (tmp_path / "again").glob("*.py")} == names
    stock, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not hasattr(stock, "infill")


def test_a_class_of_the_main_program_is_saved_as_a_stock_decoder_with_a_warning(tiny_tokenizer, tmp_path):
    kind = type("Mine", (MagnetMixin, MistralForCausalLM, GenerationMixin), {"__module__": "__main__"})
    model = kind(make_config("mistral")).eval()
    model.tokenizer = tiny_tokenizer
    assert model.encode(["The cat"]).shape == (1, 32)
    with pytest.warns(UserWarning, match="code of Mine cannot be saved"):
        model.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path)
