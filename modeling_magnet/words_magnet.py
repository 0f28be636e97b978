"""Pre-split sentences -> one vector per word."""

from collections.abc import Sequence

import numpy as np
import torch

from .encoding_magnet import EncodingMixin, check_texts


def word_of_token(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Which word of `" ".join(words)` each token belongs to: the one that holds its last character.

    Tokenizers differ in whether the space in front of a word belongs to its token, so a token's first character does
    not tell.

    Returns:
        `list[int]`: per token the index of its word, -1 for a token of white space alone.
    """
    owner: list[int] = []
    for index, word in enumerate(words):
        owner += [index] * len(word) + [-1]
    return [owner[end - 1] if end > start and end <= len(owner) else -1 for start, end in offsets]


class WordsMixin(EncodingMixin):
    """`encode_words`."""

    @torch.no_grad()
    def encode_words(
        self, inputs: Sequence[str] | Sequence[Sequence[str]], *, batch_size: int = 32
    ) -> np.ndarray | list[np.ndarray]:
        """Embed the words of pre-split sentences: bidirectional attention, no prompt, no EOS.

        Token i is represented by the output at i-1, the one that predicts it, and a word by the mean over its
        tokens (a token of white space alone belongs to no word). Where the tokenizer has no BOS, the very first token
        is represented by its own output.

        Args:
            inputs (`list[str]` or `list[list[str]]`): The words of one sentence, or of several.
            batch_size (`int`, defaults to 32): Sentences per forward; they are sorted by length first.

        Returns:
            `numpy.ndarray` of shape `(num_words, hidden_size)` in float32 for one sentence, a list of them for
            several.

        Raises:
            ValueError: no list of words, an empty word, or a sentence longer than the context.

        Source: Khosla et al. 2025, section 4.1 (word-level tasks); BehnamGhader et al. 2024 (LLM2Vec).
        """
        if isinstance(inputs, str):
            raise ValueError(f"`inputs` is a string ({inputs!r:.60}); expected a list of words. Split it.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
        single = len(inputs) > 0 and isinstance(inputs[0], str)
        sentences = [check_texts(words, name="inputs") for words in ([inputs] if single else inputs)]
        prepared = [self._prepare_words(words, index=index) for index, words in enumerate(sentences)]
        output: list[np.ndarray] = [np.empty(0)] * len(sentences)
        longest_first = sorted(range(len(sentences)), key=lambda index: -len(prepared[index][0]))
        for start in range(0, len(sentences), batch_size):
            chosen = longest_first[start : start + batch_size]
            states, _ = self._bidirectional_states([prepared[index][0] for index in chosen])
            for index, row_states in zip(chosen, states.float(), strict=True):
                ids, owners = prepared[index]
                owner = torch.tensor(owners, device=row_states.device)
                real = owner >= 0
                # The output before each token; `ids` is longer than `owners` by the BOS in front.
                before = torch.arange(len(owners), device=row_states.device) + len(ids) - len(owners) - 1
                sums = row_states.new_zeros(len(sentences[index]), row_states.shape[-1])
                sums.index_add_(0, owner[real], row_states[before.clamp(min=0)[real]])
                counts = torch.bincount(owner[real], minlength=len(sums))
                output[index] = (sums / counts[:, None]).cpu().numpy()
        return output[0] if single else output

    def _prepare_words(self, words: list[str], *, index: int) -> tuple[list[int], list[int]]:
        """Token ids of a sentence, BOS in front, and the word of each token but BOS."""
        if not words or not all(word.strip() for word in words):
            raise ValueError(f"Sentence {index} is empty or has an empty word: {words!r:.80}. Leave it out.")
        encoded = self.tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        front = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        ids = front + encoded["input_ids"]
        limit = self._longest_row(None)
        if len(ids) > limit:
            raise ValueError(f"Sentence {index} has {len(ids)} tokens; the context holds {limit}. Split it.")
        owners = word_of_token(words, encoded["offset_mapping"])
        lost = sorted(set(range(len(words))) - set(owners))
        if lost:
            raise ValueError(f"Word {words[lost[0]]!r} of sentence {index} has no token of its own. Leave it out.")
        return ids, owners


__all__ = ["WordsMixin"]
