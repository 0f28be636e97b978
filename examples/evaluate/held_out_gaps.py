"""Gaps in held-out text, and a judge of what fills them: how well a causal model reads on behind a fill."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from modeling_magnet.spans_magnet import continuation_ids, decode_fill
from modeling_magnet.texts_magnet import text_ids
from trainer import load_texts
from trainer.metrics import perplexity
from trainer.prompted_infilling import PromptedInfiller

# Tokens behind a gap that are judged.
CONTINUATION_TOKENS = 32


class HeldOutGap(NamedTuple):
    """A piece of text with a gap, and what stood in it."""

    prefix: str
    truth: str
    suffix: str
    length: int  # tokens of the truth


def draw_gaps(
    source: str | Sequence[str],
    tokenizer: Any,
    *,
    lengths: Sequence[int],
    prefix_tokens: int,
    suffix_tokens: int,
    seed: int,
) -> list[HeldOutGap]:
    """A gap in each of as many texts as there are lengths; gap and suffix begin at a space, as words do.

    Args:
        source (`str` or `Sequence[str]`): Where texts are, as `load_texts` takes it, or the texts.
        tokenizer: Counts tokens.
        lengths (`Sequence[int]`): Tokens of each gap.
        prefix_tokens, suffix_tokens (`int`): Tokens around a gap.
        seed (`int`): Draws texts and places.

    Raises:
        ValueError: too few texts that are long enough.
    """
    draw = np.random.default_rng(seed)
    name = repr(source) if isinstance(source, str) else f"A list of {len(source)} texts"
    texts = load_texts(source)["text"] if isinstance(source, str) else source
    gaps: list[HeldOutGap] = []
    for index in draw.permutation(len(texts)):
        if len(gaps) == len(lengths):
            break
        length = lengths[len(gaps)]
        ids = text_ids(tokenizer, texts[int(index)][:40_000])
        places = draw.permutation(max(len(ids) - prefix_tokens - length - suffix_tokens, 0))[:50]
        for start in (int(place) + prefix_tokens for place in places):
            before, own = ids[start - prefix_tokens : start], ids[start : start + length]
            after = ids[start + length : start + length + suffix_tokens]
            prefix = str(tokenizer.decode(before, clean_up_tokenization_spaces=False))
            truth, suffix = decode_fill(tokenizer, before, own), decode_fill(tokenizer, [*before, *own], after)
            # Texts that tokenise back to the very tokens, so that the truth has the length it is said to have.
            same = continuation_ids(tokenizer, truth) == own and "\n" not in truth
            if same and truth.startswith(" ") and suffix.startswith(" "):
                gaps.append(HeldOutGap(prefix.lstrip(), truth, suffix, length))
                break
    if len(gaps) < len(lengths):
        raise ValueError(f"{name} has {len(gaps)} texts that are long enough; {len(lengths)} gaps were asked for.")
    return gaps


def continuation_perplexity(judge: Any, tokenizer: Any, gaps: Sequence[HeldOutGap], fills: Sequence[str]) -> float:
    """Perplexity of the text behind the gaps to a causal model that has read prefix and fill.

    The first `CONTINUATION_TOKENS` tokens of each suffix count. A fill that leads nowhere makes them surprising.

    Args:
        judge (`PreTrainedModel`): Any causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        gaps (`Sequence[HeldOutGap]`): The gaps.
        fills (`Sequence[str]`): What stands in them.
    """
    reader = PromptedInfiller(judge, tokenizer)
    starts = [
        tokenizer.decode(
            continuation_ids(tokenizer, gap.suffix)[:CONTINUATION_TOKENS], clean_up_tokenization_spaces=False
        )
        for gap in gaps
    ]
    starts = [start if start.startswith(" ") else f" {start}" for start in starts]
    with torch.no_grad():
        scored = reader.score_infill(
            [gap.prefix + fill for gap, fill in zip(gaps, fills, strict=True)],
            [[start] for start in starts],
            [""] * len(gaps),
        )
    total = -sum(one[0].logprob for one in scored)
    return perplexity(total, sum(len(one[0].token_ids) for one in scored))


def word_overlap(fill: str, truth: str) -> float:
    """F1 of the words of a fill against those that stood in the gap, each counted as often as it occurs.

    Example:

        >>> round(word_overlap("the red ball", "a red ball"), 3)
        0.667
    """
    ours, theirs = fill.lower().split(), truth.lower().split()
    shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
    return 2 * shared / (len(ours) + len(theirs)) if ours and theirs else 0.0


__all__ = ["HeldOutGap", "continuation_perplexity", "draw_gaps", "word_overlap"]
