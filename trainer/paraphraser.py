"""Paraphrases of a batch of sentences by a sequence-to-sequence model, and the choice among them.

Knows nothing about files: a batch, a model and a seed go in, one sentence per sentence comes out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What Parrot samples with when it is not asked for diverse beams.
PARROT_GENERATION: Mapping[str, Any] = {"do_sample": True, "top_k": 50, "top_p": 0.95}


@torch.inference_mode()
def paraphrase_batch(
    sentences: Sequence[str],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prefix: str,
    max_length: int,
    num_candidates: int,
    generation_options: Mapping[str, Any],
    seed: int,
) -> list[str]:
    """Paraphrase sentences, each by the first of its candidates that `choose_paraphrase` accepts.

    Args:
        sentences (`Sequence[str]`): P sentences.
        model (`PreTrainedModel`): A sequence-to-sequence model, in evaluation mode on its device.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        prefix (`str`): Put in front of every sentence, the task's name for a T5.
        max_length (`int`): Tokens read of a sentence, prefix included, and tokens written.
        num_candidates (`int`): Outputs per sentence, >= 1.
        generation_options (`Mapping[str, Any]`): Passed to `generate`.
        seed (`int`): Seeds the sampling of this call, 0 to 2^64 - 1; the caller's random state stays as it was.

    Returns:
        `list[str]`: P sentences.

    Source: Damodaran 2021, Parrot, https://github.com/PrithivirajDamodaran/Parrot_Paraphraser.
    """
    encoded = tokenizer(
        [prefix + sentence for sentence in sentences],
        split_special_tokens=True,  # `</s>` in a sentence is text
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    ).to(model.device)
    # `generate` draws from the global generators only, so they are borrowed and given back.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(  # type: ignore[operator]
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_length,
            num_return_sequences=num_candidates,
            **generation_options,
        )  # (P * num_candidates, tokens)
    candidates = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [
        choose_paraphrase(sentence, candidates[index * num_candidates : (index + 1) * num_candidates])
        for index, sentence in enumerate(sentences)
    ]


def choose_paraphrase(sentence: str, candidates: Sequence[str]) -> str:
    """Choose the first candidate that differs from the sentence in more than case, punctuation and spaces.

    Args:
        sentence (`str`): The sentence that was paraphrased.
        candidates (`Sequence[str]`): Outputs of the model, in order of preference.

    Returns:
        `str`: the candidate with single spaces; the sentence itself if every candidate is a copy or has no words.

    Example:
        >>> choose_paraphrase("A cat sat.", ["a cat  sat", "", "A cat was  sitting."])
        'A cat was sitting.'
        >>> choose_paraphrase("A cat sat.", ["a cat  sat"])
        'A cat sat.'
    """
    for candidate in candidates:
        if _words(candidate) not in ([], _words(sentence)):
            return " ".join(candidate.split())
    return sentence


def _words(text: str) -> list[str]:
    """The words of a text, without case, punctuation and spaces."""
    return re.findall(r"\w+", text.casefold())


__all__ = ["PARROT_GENERATION", "choose_paraphrase", "paraphrase_batch"]
