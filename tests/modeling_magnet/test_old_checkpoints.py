"""Checkpoints saved before the restructuring load with the current code and with their own."""

import io
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM

from ..conftest import REPOSITORY
from ..scripts import run_python

# The last commit whose checkpoints carry forty-four files.
OLD = "f3c737b"
IDS = torch.tensor([[1, 40, 41, 42, 43]])
SAVE = """
import sys
import numpy as np
import torch
from modeling_magnet import MagnetLlamaForCausalLM
model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1]).eval()
model.save_pretrained(sys.argv[2])
with torch.no_grad():
    logits = model(torch.tensor([[1, 40, 41, 42, 43]])).logits.numpy()
np.savez(sys.argv[3], logits=logits, vectors=model.encode(["A cat.", "A dog."]))
"""
OPEN = """
import sys
sys.modules["modeling_magnet"] = None  # importing it fails
import numpy as np
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(torch.tensor([[1, 40, 41, 42, 43]])).logits.numpy()
np.savez(sys.argv[2], logits=logits, vectors=model.encode(["A cat.", "A dog."]))
"""


@pytest.mark.long
def test_an_old_checkpoint_opens_with_new_code_and_with_its_own(checkpoint, tmp_path):
    command = ["git", "archive", OLD, "modeling_magnet"]
    archive = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the history of this checkout does not reach back to {OLD}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path / "old", filter="data")
    arguments = (checkpoint, tmp_path / "saved", tmp_path / "old.npz")
    run_python(SAVE, *arguments, folder=tmp_path, PYTHONPATH=str(tmp_path / "old"))
    assert (tmp_path / "saved" / "states_magnet.py").is_file(), "not the old code"
    expected = np.load(tmp_path / "old.npz")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(model(IDS).logits.numpy(), expected["logits"])
    np.testing.assert_array_equal(model.encode(["A cat.", "A dog."]), expected["vectors"])
    model.save_pretrained(tmp_path / "again")
    for name in ("saved", "again"):
        run_python(OPEN, tmp_path / name, tmp_path / f"{name}.npz", folder=tmp_path)
        found = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(found["logits"], expected["logits"])
        np.testing.assert_array_equal(found["vectors"], expected["vectors"])
