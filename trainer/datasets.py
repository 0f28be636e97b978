"""Corpora: stripped texts of any source, and the blocks of token ids they are cut into.

Knows nothing about models, masks or losses; every result is cached by the `datasets` library under a fingerprint of
the rows, the tokenizer and all arguments.
"""

from collections.abc import Iterator, Sequence

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from modeling_magnet.tokenization_magnet import read_texts

from .sources import Source, as_texts, check_limit, naming_bytes, read_source

# Enough work for the tokenizer's threads, little enough that the encodings in flight stay below some 100 MB.
_CHARACTERS_PER_CALL = 1_000_000
_CHARACTERS_PER_PIECE = 10_000
_TEXTS_PER_STREAM = 1000  # joined by `concatenate`


def load_texts(
    source: Source,
    *,
    text_column: str = "text",
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read the texts of a corpus, stripped of surrounding whitespace, without the empty ones.

    A plain text file gives one text per line, the other formats one per record; the first line of a `.csv` or `.tsv`
    names its columns.

    Args:
        source (`str`, `Path` or a list of these):
            A file, a folder, a glob pattern, a list of files, or the id of one dataset of the Hub. Files may be
            `.txt`, `.tokens`, `.json`, `.jsonl`, `.parquet`, `.csv` or `.tsv`, plain or with `.gz` or `.xz` behind;
            files read together share one format.
        text_column (`str`): The column that holds the text; `"text"` for plain text files.
        split (`str`): Split of a Hub dataset, slices included (`"train[:10%]"`); files are one split, `"train"`.
        config_name (`str`, *optional*): Configuration of a Hub dataset.
        limit (`int`, *optional*): Keep the first `limit` usable texts, >= 1.

    Returns:
        `datasets.Dataset`: one column, `text`, of at least one row.

    Raises:
        ValueError: If the source does not exist, mixes formats, lacks the column or holds no text.
    """
    check_limit(limit)
    rows = read_source(source, columns=[text_column], split=split, config_name=config_name)
    with naming_bytes(source):
        texts = rows.map(
            _strip_texts,
            batched=True,
            fn_kwargs={"column": text_column},
            remove_columns=rows.column_names,
            features=Features({"text": Value("string")}),
            desc="Reading texts",
        )
    if not len(texts):
        raise ValueError(
            f"`source` is {source!r}: its {len(rows)} rows hold nothing but whitespace in column {text_column!r}. "
            "Give a source with at least one non-empty text, or another `text_column`."
        )
    return texts if limit is None else texts.select(range(min(limit, len(texts))))


def texts_to_blocks(
    texts: Dataset | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    min_length: int = 16,
    concatenate: bool = False,
    split_special_tokens: bool = True,
) -> Dataset:
    """Cut texts into blocks of at most `max_length` token ids, each opened by BOS.

    A text of more than `max_length - 1` tokens fills several blocks; the last of them is shifted back until it is
    full, so that no token is lost, none is padding, and only the overlap is seen twice.

    Args:
        texts (`datasets.Dataset` or list of `str`): Column `text` as of `load_texts`, or the texts themselves.
        tokenizer (`PreTrainedTokenizerBase`): Its BOS opens every block; no EOS is added.
        max_length (`int`): Tokens of a block, BOS included; `min_length + 1` to `tokenizer.model_max_length`.
        min_length (`int`): Texts of fewer tokens than this, BOS not counted, are dropped; >= 1.
        concatenate (`bool`):
            Join the texts with newlines before cutting, for corpora with one line per row such as WikiText. Each
            thousand texts make one stream.
        split_special_tokens (`bool`, defaults to `True`):
            Read what looks like a control token, such as `</s>` or `<unk>`, as the text that it is in a corpus;
            `False` reads it as the token.

    Returns:
        `datasets.Dataset`: one column, `input_ids`, of at least one row, lengths `min_length + 1` to `max_length`.

    Raises:
        ValueError: If a length is out of range, the tokenizer has no BOS, or every text is too short.

    Source: the training blocks of Khosla et al. 2025 (arXiv 2501.08648); grouping of lines as in LLM2Vec.
    """
    texts = as_texts(texts)
    _check_block_arguments(texts, tokenizer, max_length=max_length, min_length=min_length)
    blocks = texts.map(
        _cut_blocks,
        batched=True,
        batch_size=_TEXTS_PER_STREAM,
        fn_kwargs={
            "tokenizer": tokenizer,
            "window": max_length - 1,
            "min_length": min_length,
            "concatenate": concatenate,
            "split_special_tokens": split_special_tokens,
        },
        remove_columns=texts.column_names,
        features=Features({"input_ids": List(Value("int32"))}),
        desc="Tokenizing",
    )
    if not len(blocks):
        raise ValueError(
            f"None of the {len(texts)} texts has `min_length`={min_length} tokens. "
            "Pass longer texts, a smaller `min_length`, or `concatenate=True` to join short lines."
        )
    return blocks


def _check_block_arguments(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, min_length: int
) -> None:
    """All complaints about the arguments of `texts_to_blocks` in one error."""
    complaints = []
    if "text" not in texts.column_names:
        complaints.append(f"`texts` has the columns {texts.column_names}; expected 'text'. Rename the one to use.")
    if tokenizer.bos_token_id is None:
        complaints.append("`tokenizer` has no BOS, which opens every block. Set `tokenizer.bos_token`.")
    if min_length < 1:
        complaints.append(f"`min_length` is {min_length}; expected at least 1. Raise it.")
    if max_length <= min_length:
        complaints.append(
            f"`max_length` is {max_length}; expected more than `min_length`={min_length}, since BOS takes one place. "
            "Raise it or lower `min_length`."
        )
    if max_length > tokenizer.model_max_length:
        complaints.append(
            f"`max_length` is {max_length}; the model of this tokenizer reads at most {tokenizer.model_max_length} "
            "tokens (`tokenizer.model_max_length`). Lower it."
        )
    if complaints:
        raise ValueError("\n".join(complaints))


def _strip_texts(batch: dict[str, list], *, column: str) -> dict[str, list[str]]:
    """The non-empty texts of a batch."""
    stripped = (text.strip() for text in batch[column] if text is not None)
    return {"text": [text for text in stripped if text]}


def _cut_blocks(
    batch: dict[str, list],
    *,
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    min_length: int,
    concatenate: bool,
    split_special_tokens: bool,
) -> dict[str, list[list[int]]]:
    """The blocks of a batch of texts; with `concatenate` the whole batch is one document."""
    texts = _pieces(batch["text"]) if concatenate else batch["text"]
    documents = _tokenize(texts, tokenizer, split_special_tokens=split_special_tokens)
    if concatenate:
        documents = iter([[token for piece in documents for token in piece]])
    bos = [tokenizer.bos_token_id]
    return {
        "input_ids": [
            bos + document[start : start + window]
            for document in documents
            if len(document) >= min_length
            for start in _window_starts(len(document), window)
        ]
    }


def _window_starts(length: int, window: int) -> list[int]:
    """Where the windows over `length` tokens begin; the last ends with the last token."""
    return [*range(0, length - window, window), max(0, length - window)]


def _tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, split_special_tokens: bool
) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens, tokenised in batches of similar size in characters."""
    for chunk in _chunks(texts, _CHARACTERS_PER_CALL):
        yield from read_texts(tokenizer, chunk, split_special_tokens=split_special_tokens).input_ids


def _pieces(texts: Sequence[str]) -> list[str]:
    """The texts joined by newlines, cut behind some of these newlines.

    Tokenizers work on the texts of a batch in parallel but on one text alone; a stripped text begins with a word, so a
    pre-tokenizer that splits at whitespace gives the same tokens as for the uncut stream.
    """
    return ["\n".join(chunk) + "\n" for chunk in _chunks(texts, _CHARACTERS_PER_PIECE)]


def _chunks(texts: Sequence[str], num_characters: int) -> Iterator[list[str]]:
    """Consecutive texts, in lists that end once they hold `num_characters`."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= num_characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


__all__ = ["load_texts", "texts_to_blocks"]
