"""The ways in which Tables 2 and 3 of the paper turn a sentence into a vector: one reader each, all with `encode`.

magnet    attention in both directions, last token; `mean` is LLM2Vec's recipe
causal    a decoder as it was pretrained, last token
echo      the text twice, from left to right, mean over the second occurrence
encoder   a model of sentence-transformers, or an encoder such as SimCSE's BERT
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from examples.evaluate.echo_rows import echo_rows
from modeling_magnet.encoding_magnet import ACCELERATOR_BATCH_TOKENS, CPU_BATCH_TOKENS, PROGRESS_FROM_TEXTS
from modeling_magnet.pooling_magnet import Pooling, pool_states
from modeling_magnet.tokenization_magnet import (
    context_length,
    join_prompt,
    pad_token_rows,
    plan_batches,
    prompt_length,
    tokenize_texts,
)

# What each reader can pool; the first is the default.
POOLINGS = {
    "magnet": ("last", "mean", "weighted_mean"),
    "causal": ("last", "mean", "weighted_mean"),
    "echo": ("mean", "last"),
    "encoder": ("own", "cls", "mean"),
}


class SentenceReader(Protocol):
    """Anything that embeds sentences."""

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts.

        Args:
            texts (`Sequence[str]`): N sentences.
            prompt (`str`, defaults to `""`): The task's instruction; none by default.

        Returns:
            `numpy.ndarray` of shape `(N, H)`, in float32.
        """
        ...


class MagnetReader:
    """Attention in both directions, as `model.encode` reads.

    Args:
        model (`PreTrainedModel`): With `encode`.
        pooling (`str`, defaults to `"last"`): See `pool_states`. A mean leaves the instruction's tokens out.

    Source: Khosla et al. 2025, section 4.2; BehnamGhader et al. 2024 (LLM2Vec) for the mean.
    """

    def __init__(self, model: Any, *, pooling: Pooling = "last") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts; see `SentenceReader`."""
        vectors: np.ndarray = self.model.encode(list(texts), prompt=prompt, pooling=self.pooling)
        return vectors


class CausalReader:
    """From left to right, as a decoder was pretrained; the tokens are those of `MagnetReader`.

    Args:
        model (`PreTrainedModel`): With `tokenizer` and causal mode.
        pooling (`str`, defaults to `"last"`): The output of EOS, behind the text. See `pool_states`.

    Source: Khosla et al. 2025, Table 2, the row "LLaMA-2-7B (last token)".
    """

    def __init__(self, model: Any, *, pooling: Pooling = "last") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts; see `SentenceReader`."""
        tokenizer = self.model.tokenizer
        rows = tokenize_texts(tokenizer, texts, prompt=prompt, max_length=context_length(self.model.config, tokenizer))
        left_out = prompt_length(tokenizer, prompt)
        vectors = np.empty((len(rows), self.model.config.hidden_size), dtype=np.float32)
        for indices, states, attention_mask in causal_states(self.model, rows):
            pooled = pool_states(states, attention_mask, pooling=self.pooling, prompt_length=left_out)
            vectors[indices] = pooled.cpu().numpy()
        return vectors


class EchoReader:
    """Echo embeddings: the text twice, from left to right, so that the second occurrence has read all of the first.

    Pooled is the second occurrence alone, as the paper says; the authors' code counts an EOS behind it as well, which
    their models were trained with.

    Args:
        model (`PreTrainedModel`): With `tokenizer` and causal mode.
        pooling (`str`, defaults to `"mean"`): Over the second occurrence, or its `"last"` token.

    Source: Springer et al. 2024 (https://huggingface.co/papers/2402.15449), section 3; the template is in `echo_rows`.
    """

    def __init__(self, model: Any, *, pooling: Pooling = "mean") -> None:
        self.model, self.pooling = model, pooling

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts; see `SentenceReader`."""
        tokenizer = self.model.tokenizer
        rows = echo_rows(tokenizer, texts, prompt=prompt, max_length=context_length(self.model.config, tokenizer))
        vectors = np.empty((len(rows), self.model.config.hidden_size), dtype=np.float32)
        for indices, states, attention_mask in causal_states(self.model, [row.ids for row in rows]):
            place = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            starts = torch.tensor([rows[index].start for index in indices], device=attention_mask.device)
            second = attention_mask * (place >= starts[:, None])  # (B, S)
            vectors[indices] = pool_states(states, second, pooling=self.pooling).cpu().numpy()
        return vectors


class EncoderReader:
    """A model of sentence-transformers. Encoders of the paper's tables get no instruction.

    Args:
        model (`SentenceTransformer`): See `open_encoder`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        """Embed texts; see `SentenceReader`."""
        # An empty prompt says none; without one the model's own default would be put in front.
        vectors: np.ndarray = self.model.encode(
            list(texts), prompt=join_prompt(prompt, ""), show_progress_bar=len(texts) >= PROGRESS_FROM_TEXTS
        )
        return vectors.astype(np.float32)


def open_encoder(path: str, *, pooling: str = "own", dtype: str = "float32", device: str = "cpu") -> EncoderReader:
    """Open a directory or Hub id by sentence-transformers.

    Args:
        path (`str`): Saved by that library, or a plain encoder.
        pooling (`str`, defaults to `"own"`): As the directory says; where it says nothing the library takes the mean.
            `"cls"`: the first token's state, as SimCSE measures its models trained without labels. `"mean"`.
        dtype (`str`, defaults to `"float32"`): Of the weights.
        device (`str`, defaults to `"cpu"`): Where they go.

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
def causal_states(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """States of token rows in causal mode, in batches of like length, the longest first.

    Args:
        model (`PreTrainedModel`): With causal mode, in evaluation mode.
        rows (`Sequence[Sequence[int]]`): Token ids, unpadded.

    Yields:
        Indices of a batch's rows, states `(B, S, H)` and attention mask `(B, S)`, padded on the right.
    """
    known = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, 0)
    pad_token_id = next(token_id for token_id in known if token_id is not None)
    budget = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    no_logits = torch.arange(0, device=model.device)
    with tqdm(total=len(rows), desc="Encoding", unit="text", disable=len(rows) < PROGRESS_FROM_TEXTS) as bar:
        for indices in plan_batches([len(row) for row in rows], max_tokens=budget):
            padded = pad_token_rows([rows[index] for index in indices], pad_token_id=pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in padded.items()}
            outputs = model(**batch, mode="causal", use_cache=False, logits_to_keep=no_logits)
            yield indices, outputs.last_hidden_state, batch["attention_mask"]
            bar.update(len(indices))


__all__ = [
    "POOLINGS",
    "CausalReader",
    "EchoReader",
    "EncoderReader",
    "MagnetReader",
    "SentenceReader",
    "causal_states",
    "open_encoder",
]
