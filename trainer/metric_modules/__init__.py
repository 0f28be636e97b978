"""Provide the paper's metrics as modules of Hugging Face `evaluate`, which need the `eval` extra.

Load one with `evaluate.load(str(METRIC_MODULES / "NAME.py"))`.
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
