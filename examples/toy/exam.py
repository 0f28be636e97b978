"""Ask each model the questions of the quickstart: the same texts, missing sentences and masked tokens.

A causal model sees the text to the left; `mode` and `suffixes` say what else a model sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from examples.toy.language import THINGS, Story
from modeling_magnet.losses_magnet import IGNORE_INDEX
from modeling_magnet.pooling_magnet import last_token_states
from modeling_magnet.tokenization_magnet import pad_token_rows, tokenize_texts
from trainer.metrics import perplexity, repetition_n

BATCH_SIZE = 64
CONTINUATION_TOKENS = 48


def fact_accuracy(fills: Sequence[str], stories: Sequence[Story]) -> float:
    """Return the share of the fills that name the story's thing and no other thing.

    Example:
        >>> story = Story(prefix="Tom was there.", missing=" He found a kite.", suffix=" It flew.", answer="kite")
        >>> fact_accuracy([" He has a kite."], [story]), fact_accuracy([" A kite, a cake."], [story])
        (1.0, 0.0)
    """
    words = [fill.lower().replace(".", " ").replace(",", " ").split() for fill in fills]
    named = [[thing for thing in THINGS if thing in fill] for fill in words]
    return sum(things == [story.answer] for things, story in zip(named, stories, strict=True)) / len(stories)


def retrieval_accuracy(anchors: Tensor, positives: Tensor) -> float:
    """Return the share of the anchors whose paraphrase has the highest cosine.

    Args:
        anchors, positives (`torch.FloatTensor` of shape `(P, H)`): Row i of one is a paraphrase of row i of the other.

    Example:
        >>> retrieval_accuracy(torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, -0.5]]))
        0.5
    """
    scores = F.normalize(anchors, dim=-1) @ F.normalize(positives, dim=-1).T  # (P, P)
    return (scores.argmax(1) == torch.arange(len(anchors))).float().mean().item()


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions; each method asks a model in evaluation mode one of them."""

    tokenizer: PreTrainedTokenizerBase
    stories: list[Story]
    pairs: list[dict[str, str]]
    max_length: int

    @property
    def other_suffixes(self) -> list[str]:
        """Return for each story the suffix of the next one."""
        suffixes = [story.suffix for story in self.stories]
        return suffixes[1:] + suffixes[:1]

    @property
    def span_tokens(self) -> float:
        """Return the mean number of tokens of a missing sentence."""
        lengths = self._span_lengths()
        return sum(lengths) / len(lengths)

    def left_to_right_fills(self, model: Any) -> list[str]:
        """Fill each blank greedily from its prefix only, with the length of the missing sentence."""
        prefixes = self.tokenizer([story.prefix for story in self.stories])["input_ids"]
        fills: dict[int, str] = {}
        for chosen, num_tokens in self._by_length():
            texts = self._generate(model, [prefixes[index] for index in chosen], max_new_tokens=num_tokens)
            fills.update(zip(chosen, texts, strict=True))
        return [fills[index] for index in range(len(self.stories))]

    def infills(self, model: Any, *, suffixes: Sequence[str] | None = None) -> list[str]:
        """Fill each blank greedily from both sides, with the length of the missing sentence."""
        suffixes = [story.suffix for story in self.stories] if suffixes is None else suffixes
        fills: dict[int, str] = {}
        for chosen, num_tokens in self._by_length():
            texts = model.infill(
                [self.stories[index].prefix for index in chosen],
                [suffixes[index] for index in chosen],
                max_new_tokens=num_tokens,
            )
            fills.update(zip(chosen, texts, strict=True))
        return [fills[index] for index in range(len(self.stories))]

    @torch.no_grad()
    def scored_facts(self, model: Any) -> float:
        """Return the share of stories in which the true thing is the most likely of all things in its place."""
        texts = [story.text.replace(f" {story.answer} ", f" {thing} ") for story in self.stories for thing in THINGS]
        rows = self.tokenizer(texts)["input_ids"]
        losses = []
        for chosen in _batches(rows):
            batch = self._batch([rows[index] for index in chosen])
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
            losses.append(_token_losses(model(**batch).logits, labels).sum(1))
        best = torch.cat(losses).view(len(self.stories), len(THINGS)).argmin(1)
        things = list(THINGS)
        return sum(things[index] == story.answer for index, story in zip(best, self.stories, strict=True)) / len(best)

    def missing_perplexity(
        self, model: Any, *, mode: str | None = None, suffixes: Sequence[str] | None = None
    ) -> float:
        """Return the perplexity of the missing sentences: from the prefix, or in mode "infill" from both sides."""
        suffixes = [story.suffix for story in self.stories] if suffixes is None else suffixes
        prefixes = self.tokenizer([story.prefix for story in self.stories])["input_ids"]
        missing = self._continuations([story.missing for story in self.stories])
        rows, spans = [], []
        for left, span, right in zip(prefixes, missing, self._continuations(suffixes), strict=True):
            rows.append(left + span + right)
            spans.append([0] * len(left) + [1] * len(span) + [0] * len(right))
        return self._perplexity(model, rows, spans, mode=mode)

    def causal_perplexity(self, model: Any) -> float:
        """Return the perplexity of whole stories, read from left to right."""
        texts = [story.text for story in self.stories]
        rows = tokenize_texts(self.tokenizer, texts, prompt=None, max_length=self.max_length).input_ids
        return self._perplexity(model, rows, [[0] + [1] * (len(row) - 1) for row in rows], mode=None)

    @torch.no_grad()
    def plain_retrieval(self, model: Any) -> float:
        """Return the share of paraphrases found by the state of the last token."""
        sides = []
        for side in ("anchor", "positive"):
            rows = self.tokenizer([pair[side] for pair in self.pairs])["input_ids"]
            vectors = []
            for chosen in _batches(rows):
                batch = self._batch([rows[index] for index in chosen])
                states = model(**batch, output_hidden_states=True).hidden_states[-1]  # (B, S, H)
                vectors.append(last_token_states(states, batch["attention_mask"]))
            sides.append(torch.cat(vectors))
        return retrieval_accuracy(*sides)

    def encode_retrieval(self, model: Any) -> float:
        """Return the share of paraphrases found by `model.encode`."""
        sides = [[pair[side] for pair in self.pairs] for side in ("anchor", "positive")]
        return retrieval_accuracy(*(model.encode(texts, convert_to_tensor=True) for texts in sides))

    def repetition(self, model: Any) -> float:
        """Return Rep-4 of greedy continuations of the openings."""
        prompts = self.tokenizer([story.prefix for story in self.stories])["input_ids"]
        texts: list[str] = []
        for chosen in _batches(prompts):
            texts += self._generate(model, [prompts[index] for index in chosen], max_new_tokens=CONTINUATION_TOKENS)
        return repetition_n(texts, n=4)

    def _continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids without BOS."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def _span_lengths(self) -> list[int]:
        """Return the number of tokens of each missing sentence."""
        return [len(ids) for ids in self._continuations([story.missing for story in self.stories])]

    def _by_length(self) -> Iterator[tuple[list[int], int]]:
        """Yield batches of stories whose missing sentences have equal token counts, with that count."""
        lengths = self._span_lengths()
        for length in sorted(set(lengths)):
            indices = [index for index, other in enumerate(lengths) if other == length]
            for chosen in _batches(indices):
                yield [indices[index] for index in chosen], length

    def _batch(self, rows: Sequence[list[int]], *, padding_side: str = "right") -> dict[str, Tensor]:
        """Collate rows to one batch."""
        return pad_token_rows(rows, pad_token_id=self.tokenizer.pad_token_id, padding_side=padding_side)

    def _generate(self, model: Any, rows: Sequence[list[int]], *, max_new_tokens: int) -> list[str]:
        """Return greedy continuations without special tokens."""
        batch = self._batch(rows, padding_side="left")
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        return self.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def _perplexity(
        self, model: Any, rows: Sequence[list[int]], counted: Sequence[list[int]], *, mode: str | None
    ) -> float:
        """Return the perplexity of the tokens marked 1; in mode "infill" these are also the span."""
        loss_sum, num_tokens = 0.0, 0
        for chosen in _batches(rows):
            batch = self._batch([rows[index] for index in chosen])
            marks = pad_token_rows([counted[index] for index in chosen], pad_token_id=0)["input_ids"]
            spans = {"segment_ids": marks} if mode == "infill" else {}
            labels = batch["input_ids"].masked_fill(marks == 0, IGNORE_INDEX)
            options = {} if mode is None else {"mode": mode}  # a stock Llama has no modes
            loss_sum += _token_losses(model(**batch, **options, **spans).logits, labels).sum().item()
            num_tokens += int(marks.sum())
        return perplexity(loss_sum, num_tokens)


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each token given the output before it, `(B, S - 1)`; 0 at ignored positions."""
    return F.cross_entropy(logits[:, :-1].float().mT, labels[:, 1:], reduction="none", ignore_index=IGNORE_INDEX)


def _batches(rows: Sequence[Any]) -> Iterator[range]:
    """Yield the indices of the rows in batches."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield range(start, min(start + BATCH_SIZE, len(rows)))
