"""What the quickstart's models are trained on and asked: how much of everything, the tokenizer, the token rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.quickstart_measures import Exam
from examples.synthetic_corpus import THINGS, Story, read_rows, write_corpus
from modeling_magnet.tokenization_magnet import DEFAULT_PROMPT, tokenize_texts

MAX_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything."""

    stories: int = 16_000
    pairs: int = 8_000
    tests: int = 256
    hidden_size: int = 128
    causal_steps: int = 200
    infill_steps: int = 350  # MNTP and MSG
    contrastive_steps: int = 150  # MNTP, MSG and SSCL

    @property
    def adaptation_steps(self) -> int:
        """Steps of the adaptation, and of the control."""
        return self.infill_steps + self.contrastive_steps


SMOKE = Budget(stories=300, pairs=200, tests=16, hidden_size=32, causal_steps=4, infill_steps=3, contrastive_steps=2)


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that puts BOS in front; it has EOS, PAD, and the mask token `_`.

    Args:
        texts (`Sequence[str]`): What it should know.

    Returns:
        `PreTrainedTokenizerFast`: one token for each of `THINGS`, so that a gap's length tells nothing.

    Raises:
        ValueError: if the texts are too few for that.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        [*texts, *[DEFAULT_PROMPT] * 100],
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    split = [thing for thing in THINGS if len(fast.tokenize(" " + thing)) != 1]
    if split:
        raise ValueError(f"{split} are more than one token each; train the tokenizer on more texts than {len(texts)}.")
    return fast


@dataclass(frozen=True)
class Material:
    """What the models are trained on and asked.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Of all of it.
        exam (`Exam`): The questions.
        stories (`Dataset`): Token rows of the stories.
        everything (`Dataset`): The same, and of the pairs' sentences.
        pairs (`Dataset`): Sentences that say one fact in two wordings.
    """

    tokenizer: PreTrainedTokenizerFast
    exam: Exam
    stories: Dataset
    everything: Dataset
    pairs: Dataset


def prepare(folder: Path, *, budget: Budget, seed: int) -> Material:
    """Write the corpus and train its tokenizer.

    Args:
        folder (`Path`): Gets the corpus.
        budget (`Budget`): How much of it.
        seed (`int`): Decides every draw.
    """
    paths = write_corpus(folder, seed=seed, stories=budget.stories, pairs=budget.pairs, tests=budget.tests)
    texts = {name: read_rows(path) for name, path in paths.items()}
    story_texts = [row["text"] for row in texts["stories_train"]]
    pair_texts = [f"{row['anchor']} {row['positive']}" for row in texts["pairs_train"]]
    tokenizer = build_tokenizer(story_texts + pair_texts)
    exam = Exam(
        tokenizer=tokenizer,
        stories=[
            Story(prefix=row["prefix"], missing=row["missing"], suffix=row["suffix"], answer=row["answer"])
            for row in texts["stories_test"]
        ],
        pairs=texts["pairs_test"],
        max_length=MAX_LENGTH,
    )
    stories, everything = (
        Dataset.from_dict({"input_ids": tokenize_texts(tokenizer, chosen, prompt=None, max_length=MAX_LENGTH)})
        for chosen in (story_texts, story_texts + pair_texts)
    )
    pairs = Dataset.from_list(texts["pairs_train"])
    return Material(tokenizer=tokenizer, exam=exam, stories=stories, everything=everything, pairs=pairs)


__all__ = ["MAX_LENGTH", "SMOKE", "Budget", "Material", "build_tokenizer", "prepare"]
