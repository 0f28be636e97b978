"""Wrap a sentence reader for `mteb.evaluate` on data that was put into the task.

Users wrap a MAGNET model with `trainer/mteb_encoder.py`; this class wraps any reader and passes its instruction.
"""

import warnings
from typing import Any

import mteb
import numpy as np
from datasets import Dataset
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from examples.evaluate.parts.sentence_readers import SentenceReader


class ReaderEncoder(AbsEncoder):
    """Wrap a reader for MTEB."""

    def __init__(self, reader: SentenceReader, *, prompt: str) -> None:
        self.model, self.prompt = reader, prompt
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "local/reader", "revision": "local"})

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """Embed the texts of a task."""
        texts = [text for batch in inputs for text in batch["text"]]
        vectors: np.ndarray = self.model.encode(texts, prompt=self.prompt)
        return vectors


def scores_by_mteb(
    reader: SentenceReader, task_name: str, columns: dict[str, list[Any]], *, prompt: str
) -> dict[str, float]:
    """Compute the scores of MTEB's own evaluator, without its download and its cache."""
    task = mteb.get_task(task_name)
    task.dataset = {"default": {"test": Dataset.from_dict(columns)}}
    task.data_loaded = True
    encoder: Any = ReaderEncoder(reader, prompt=prompt)
    with warnings.catch_warnings():
        # The paper uses the legacy tasks; figures of their second versions are not comparable.
        warnings.filterwarnings("ignore", message=".*is superseded by")
        result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    scores: dict[str, float] = dict(result.task_results[0].scores["test"][0])
    return scores
