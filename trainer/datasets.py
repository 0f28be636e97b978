"""Load the texts of a corpus and cut them into blocks of token ids.

The `datasets` library caches each result by a fingerprint of the rows, the tokenizer and all arguments.
"""

from collections.abc import Iterator, Sequence

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from modeling_magnet.tokenization_magnet import read_texts

from .sources import Source, as_texts, check_limit, map_texts, read_source

# Large enough to keep the tokenizer's threads busy, with encodings of less than about 100 MB.
_CHARACTERS_PER_CALL = 1_000_000
_CHARACTERS_PER_PART = 10_000
_TEXTS_PER_STREAM = 1000  # joined by `concatenate`


def load_texts(
    source: Source,
    *,
    text_column: str = "text",
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read the non-empty texts of a corpus, stripped of surrounding whitespace.

    A plain text file gives one text per line, the other formats one per record; the first line of a `.csv` or `.tsv`
    names its columns.

    Args:
        source (`str`, `Path` or a list of these):
            A file, a folder, a glob pattern, a list of files, or the id of one dataset of the Hub. Files may be
            `.txt`, `.tokens`, `.json`, `.jsonl`, `.parquet`, `.csv` or `.tsv`, plain or compressed as `.gz` or `.xz`;
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
    return map_texts(
        rows,
        _strip_texts,
        columns=["text"],
        source=source,
        empty=f"`source` is {source!r}: its {len(rows)} rows hold nothing but whitespace in column {text_column!r}. "
        "Give a source with at least one non-empty text, or another `text_column`.",
        limit=limit,
        desc="Reading texts",
        column=text_column,
    )


def texts_to_blocks(
    texts: Dataset | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    min_length: int = 16,
    concatenate: bool = False,
    split_special_tokens: bool = True,
) -> Dataset:
    """Cut texts into blocks of at most `max_length` token ids that begin with BOS.

    A text of more than `max_length - 1` tokens fills several blocks. The last block starts earlier so that it is full:
    no token is lost, there is no padding, and only the overlap occurs twice.

    Args:
        texts (`datasets.Dataset` or list of `str`): Column `text` as of `load_texts`, or the texts themselves.
        tokenizer (`PreTrainedTokenizerBase`): Its BOS begins every block; no EOS is added.
        max_length (`int`): Tokens of a block, BOS included; `min_length + 1` to `tokenizer.model_max_length`.
        min_length (`int`): Texts of fewer tokens, without BOS, are dropped; >= 1.
        concatenate (`bool`): Join every 1,000 texts with newlines first, for corpora of one line per row (WikiText).
        split_special_tokens (`bool`, defaults to `True`):
            Read control tokens in a text, such as `</s>`, as text; `False` reads them as tokens.

    Returns:
        `datasets.Dataset`: one column, `input_ids`, of at least one row, lengths `min_length + 1` to `max_length`.

    Raises:
        ValueError: If a length is out of range, the tokenizer has no BOS, or every text is too short.

    Source: the training blocks of Khosla et al. 2025 (arXiv 2501.08648); grouping of lines as in LLM2Vec.
    """
    texts = as_texts(texts)
    if tokenizer.bos_token_id is None:
        raise ValueError("`tokenizer` has no BOS token, with which every block begins. Set `tokenizer.bos_token`.")
    if not 0 < min_length < max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"`min_length` is {min_length} and `max_length` {max_length}; expected 1 <= `min_length` < `max_length`, "
            f"and at most {tokenizer.model_max_length} tokens, the `model_max_length` of the tokenizer."
        )
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


def _strip_texts(batch: dict[str, list], *, column: str) -> dict[str, list[str]]:
    """Return the non-empty texts of a batch."""
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
    """Cut a batch of texts into blocks; with `concatenate` the batch is one document."""
    texts = batch["text"]
    if concatenate:
        # The tokenizer processes parts in parallel. Each part begins with a word, so a pre-tokenizer that splits at
        # whitespace gives the same tokens as for the joined text.
        texts = ["\n".join(chunk) + "\n" for chunk in _chunks(texts, _CHARACTERS_PER_PART)]
    documents = [
        document
        for chunk in _chunks(texts, _CHARACTERS_PER_CALL)
        for document in read_texts(tokenizer, chunk, split_special_tokens=split_special_tokens).input_ids
    ]
    if concatenate:
        documents = [[token for document in documents for token in document]]
    blocks = []
    for document in documents:
        if len(document) >= min_length:
            last = max(0, len(document) - window)  # the last window ends with the last token
            starts = [*range(0, last, window), last]
            blocks += [[tokenizer.bos_token_id, *document[start : start + window]] for start in starts]
    return {"input_ids": blocks}


def _chunks(texts: Sequence[str], num_characters: int) -> Iterator[list[str]]:
    """Yield consecutive texts in lists of about `num_characters`."""
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
