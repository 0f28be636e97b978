"""The paper's metrics as modules of Hugging Face `evaluate`: `evaluate.load(str(METRIC_MODULES / "NAME.py"))`.

Each file is one metric around a pure function, so that `evaluate.combine` and the libraries that build on it can use
it. They need the `eval` extra; nothing here imports them.
"""

from pathlib import Path

METRIC_MODULES = Path(__file__).resolve().parent
"""Folder of the metrics' files."""

CITATION = """\
@inproceedings{khosla2025magnet,
    title={MAGNET: Augmenting Generative Decoders with Representation Learning and Infilling Capabilities},
    author={Khosla and Tiwari and Kafle and Jenni and Zhao and Collomosse and Shi},
    booktitle={ACL},
    year={2025},
}
"""
"""What to cite, as BibTeX."""

__all__ = ["CITATION", "METRIC_MODULES"]
