"""Implement the ways in which Tables 2 and 3 of the paper turn a sentence into a vector, one reader each.

magnet    attention in both directions, last token; `mean` is LLM2Vec's recipe
causal    a decoder as it was pretrained, last token
echo      the text twice, from left to right, mean over the second occurrence
encoder   a model of sentence-transformers, or an encoder such as SimCSE's BERT
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_magnet.batching_magnet import PROGRESS_FROM_TEXTS, hidden_states, token_budget
from modeling_magnet.configuration_magnet import Pooling
from modeling_magnet.pooling_magnet import pool_states
from modeling_magnet.tokenization_magnet import (
    bos_ids,
    check_text,
    context_length,
    join_prompt,
    prompt_length,
    read_texts,
    text_ids,
    tokenize_texts,
)

# With a task's instruction as in the authors' code. There, each part is tokenized separately, so that a vocabulary
# such as Llama's puts a space in front of it; here, the space is written.
ECHO_TEMPLATE = "Instruct: {prompt},\nQuery: {text}\nQuery again: {text}"
# Without an instruction, as in section 3 of their paper.
PLAIN_ECHO_TEMPLATE = "Rewrite the sentence: {text}, rewritten sentence: {text}"
# Poolings of each reader; the first is the default.
POOLINGS = {
    "magnet": ("last", "mean", "weighted_mean"),
    "causal": ("last", "mean", "weighted_mean"),
    "echo": ("mean", "last"),
    "encoder": ("own", "cls", "mean"),
}


class EchoRow(NamedTuple):
    """A text twice as tokens."""

    ids: list[int]  # BOS if the tokenizer adds one, template and texts; no EOS
    start: int  # position of the first token of the second occurrence, which extends to the row's end


def echo_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str, max_length: int
) -> list[EchoRow]:
    """Return the token ids of each text in the template.

    A token that holds the template's last space and the text's first letters is the text's. A text is cut at its end
    until both occurrences fit. Of an empty text, the template's last token is taken for it.

    Source: Springer et al. 2024 (Echo embeddings, https://huggingface.co/papers/2402.15449), section 3, and the
    template `query` of https://github.com/jakespringer/echo-embeddings.
    """
    check_echo_prompt_fits(tokenizer, prompt=prompt, max_length=max_length)
    before, between = echo_frame(prompt)
    front = bos_ids(tokenizer)
    if not texts:
        return []
    encoded = read_texts(tokenizer, [before + text + between + text for text in texts], return_offsets=True)
    rows = []
    for given, ids, spans in zip(texts, *encoded, strict=True):
        text = given
        if len(front) + len(ids) > max_length:
            text, ids, spans = _cut(tokenizer, text, prompt=prompt, capacity=max_length - len(front))
        begin = len(before) + len(text) + len(between)
        start = next((place for place, (_, end) in enumerate(spans) if end > begin), len(ids) - 1)
        rows.append(EchoRow(front + ids, len(front) + start))
    return rows


def echo_frame(prompt: str) -> tuple[str, str]:
    """Return the text before a sentence, and between its two occurrences.

    Example:
        >>> echo_frame("Retrieve semantically similar text: ")
        ('Instruct: Retrieve semantically similar text,\\nQuery: ', '\\nQuery again: ')
    """
    template = ECHO_TEMPLATE if prompt.strip() else PLAIN_ECHO_TEMPLATE
    before, between, _ = template.split("{text}")
    return before.replace("{prompt}", prompt.strip().removesuffix(":")), between


def check_echo_prompt_fits(tokenizer: PreTrainedTokenizerBase, *, prompt: str, max_length: int) -> None:
    """Refuse a template that leaves no room for two tokens of text."""
    check_text(prompt, name="prompt")
    frame = "".join(echo_frame(prompt))
    length = len(bos_ids(tokenizer)) + len(text_ids(tokenizer, frame))
    if length + 2 > max_length:
        raise ValueError(
            f"BOS and the template of the echo with the prompt {prompt!r:.60} take {length} tokens of rows of "
            f"{max_length}, which leaves no room for a text twice. Shorten the prompt."
        )


def _cut(
    tokenizer: PreTrainedTokenizerBase, text: str, *, prompt: str, capacity: int
) -> tuple[str, list[int], list[tuple[int, int]]]:
    """Truncate a text to at most `capacity` tokens, and return it with its ids and offsets."""
    before, between = echo_frame(prompt)
    frame = len(text_ids(tokenizer, before + between))
    (places,) = read_texts(tokenizer, [text], return_offsets=True).offsets
    kept = min((capacity - frame) // 2, len(places))
    while kept > 0:
        front = text[: places[kept - 1][1]]
        row = before + front + between + front
        (ids,), (spans,) = read_texts(tokenizer, [row], return_offsets=True)
        if len(ids) <= capacity:
            return front, ids, spans
        kept -= max(1, (len(ids) - capacity) // 2)  # truncation can split a token into several
    raise ValueError(
        f"No token of {text!r:.60} fits twice into {capacity} tokens with the template. Shorten the prompt."
    )


class SentenceReader(Protocol):
    """Define the interface of readers that embed sentences."""

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts.

        Returns:
            `numpy.ndarray` of shape `(N, H)`, in float32.
        """
        ...


class MagnetReader:
    """Read in both directions as `model.encode` does; mean pooling excludes the instruction's tokens.

    Source: Khosla et al. 2025, section 4.2; BehnamGhader et al. 2024 (LLM2Vec) for the mean.
    """

    def __init__(self, model: Any, *, pooling: Pooling = "last") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        vectors: np.ndarray = self.model.encode(list(texts), prompt=prompt, pooling=self.pooling)
        return vectors


class CausalReader:
    """Read from left to right with the tokens of `MagnetReader`; pooling `"last"` takes the state of EOS.

    Source: Khosla et al. 2025, Table 2, the row "LLaMA-2-7B (last token)".
    """

    def __init__(self, model: Any, *, pooling: Pooling = "last") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        tokenizer = self.model.tokenizer
        rows = tokenize_texts(
            tokenizer, texts, prompt=prompt, max_length=context_length(self.model.config, tokenizer)
        ).input_ids
        left_out = prompt_length(tokenizer, prompt)
        return _pooled_causally(self.model, rows, pooling=self.pooling, prompt_length=left_out)


class EchoReader:
    """Read the text twice from left to right, so that the second occurrence has seen all of the first.

    Only the second occurrence is pooled, as the paper says. The authors' code also pools an EOS after it, with which
    their models were trained.

    Source: Springer et al. 2024 (https://huggingface.co/papers/2402.15449), section 3; the template is in `echo_rows`.
    """

    def __init__(self, model: Any, *, pooling: Pooling = "mean") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        tokenizer = self.model.tokenizer
        rows = echo_rows(tokenizer, texts, prompt=prompt, max_length=context_length(self.model.config, tokenizer))
        starts = [row.start for row in rows]
        return _pooled_causally(self.model, [row.ids for row in rows], pooling=self.pooling, starts=starts)


class EncoderReader:
    """Wrap a sentence-transformers model. The encoders of the paper's tables get no instruction.

    Args:
        model (`SentenceTransformer`): See `open_encoder`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        # An empty prompt disables prompts; otherwise the model's own default would be prepended.
        vectors: np.ndarray = self.model.encode(
            list(texts), prompt=join_prompt(prompt, ""), show_progress_bar=len(texts) >= PROGRESS_FROM_TEXTS
        )
        return vectors.astype(np.float32)


def open_encoder(path: str, *, pooling: str = "own", dtype: str = "float32", device: str = "cpu") -> EncoderReader:
    """Open a directory or Hub id with sentence-transformers.

    Source: Gao et al. 2021 (SimCSE, https://huggingface.co/papers/2104.08821), section 6.3, for the first token.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    model = SentenceTransformer(path, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    if pooling != "own":
        transformer: Any = model[0]
        pooled = PoolingModule(transformer.get_embedding_dimension(), pooling_mode=pooling)
        model = SentenceTransformer(modules=[transformer, pooled], device=device)
    return EncoderReader(model.eval())


@torch.no_grad()
def _pooled_causally(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    pooling: Pooling,
    prompt_length: int = 0,
    starts: Sequence[int] | None = None,
) -> np.ndarray:
    """Return a vector of each token row in causal mode, pooled over its tokens from `starts` on."""
    vectors = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(rows), desc="Encoding", unit="text", disable=len(rows) < PROGRESS_FROM_TEXTS) as bar:
        for batch in hidden_states(model, rows, batch_tokens=token_budget(model), batch_size=None, mode="causal"):
            counted = batch.attention_mask  # (B, S)
            if starts is not None:
                place = torch.arange(counted.shape[1], device=model.device)
                first = torch.tensor([starts[index] for index in batch.indices], device=model.device)
                counted = counted * (place >= first[:, None])
            pooled = pool_states(batch.states, counted, pooling=pooling, prompt_length=prompt_length)
            vectors[batch.indices] = pooled.cpu().numpy()
            bar.update(len(batch.indices))
    return vectors
