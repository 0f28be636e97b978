"""Echo embeddings' input: a text twice in a row of tokens, and where its second occurrence begins."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from modeling_magnet.tokenization_magnet import check_is_unicode, front_tokens, read_texts, text_ids

# With a task's instruction as in the authors' code; there each part is tokenised by itself, which puts a space in
# front of it in a vocabulary such as Llama's. Here the space is written.
ECHO_TEMPLATE = "Instruct: {prompt},\nQuery: {text}\nQuery again: {text}"
# Without one as in section 3 of their paper.
PLAIN_ECHO_TEMPLATE = "Rewrite the sentence: {text}, rewritten sentence: {text}"


class EchoRow(NamedTuple):
    """A text twice."""

    ids: list[int]  # BOS where there is one, template and texts; no EOS
    start: int  # place of the first token of the second occurrence, which goes to the row's end


def echo_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str, max_length: int
) -> list[EchoRow]:
    """Token ids of each text in the template.

    A token that holds the template's last space and the text's first letters is the text's. A text is cut at its end
    until both occurrences fit. Of an empty text, the template's last token is taken for it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast one, which knows the places of its tokens.
        texts (`Sequence[str]`): Any texts.
        prompt (`str`): The task's instruction, without or with a colon at its end; `""` for none.
        max_length (`int`): Longest row in tokens, BOS included.

    Returns:
        `list[EchoRow]`: one per text.

    Raises:
        ValueError: no room for a text between the template's words.

    Source: Springer et al. 2024 (Echo embeddings, https://huggingface.co/papers/2402.15449), section 3, and the
    template `query` of https://github.com/jakespringer/echo-embeddings.
    """
    check_echo_room(tokenizer, prompt=prompt, max_length=max_length)
    before, between = echo_frame(prompt)
    front = front_tokens(tokenizer)
    if not texts:
        return []
    encoded = read_texts(tokenizer, [before + text + between + text for text in texts], return_offsets=True)
    rows = []
    for given, ids, spans in zip(texts, *encoded, strict=True):
        text = given
        if len(front) + len(ids) > max_length:
            text, ids, spans = _cut(tokenizer, text, prompt=prompt, room=max_length - len(front))
        begin = len(before) + len(text) + len(between)
        start = next((place for place, (_, end) in enumerate(spans) if end > begin), len(ids) - 1)
        rows.append(EchoRow(front + ids, len(front) + start))
    return rows


def echo_frame(prompt: str) -> tuple[str, str]:
    """What stands in front of a text, and between its two occurrences.

    Example:

        >>> echo_frame("Retrieve semantically similar text: ")
        ('Instruct: Retrieve semantically similar text,\\nQuery: ', '\\nQuery again: ')
    """
    template = ECHO_TEMPLATE if prompt.strip() else PLAIN_ECHO_TEMPLATE
    before, between, _ = template.split("{text}")
    return before.replace("{prompt}", prompt.strip().removesuffix(":")), between


def check_echo_room(tokenizer: PreTrainedTokenizerBase, *, prompt: str, max_length: int) -> None:
    """Refuse a template that leaves no room for two tokens of text.

    Raises:
        ValueError: naming its length, or a prompt that is no Unicode text.
    """
    check_is_unicode(prompt, name="prompt")
    frame = "".join(echo_frame(prompt))
    length = len(front_tokens(tokenizer)) + len(text_ids(tokenizer, frame))
    if length + 2 > max_length:
        raise ValueError(
            f"BOS and the template of the echo with the prompt {prompt!r:.60} take {length} tokens of rows of "
            f"{max_length}, which leaves no room for a text twice. Shorten the prompt."
        )


def _cut(
    tokenizer: PreTrainedTokenizerBase, text: str, *, prompt: str, room: int
) -> tuple[str, list[int], list[tuple[int, int]]]:
    """The front of a text with ids and places of its row of at most `room` tokens."""
    before, between = echo_frame(prompt)
    frame = len(text_ids(tokenizer, before + between))
    (places,) = read_texts(tokenizer, [text], return_offsets=True).offsets
    kept = min((room - frame) // 2, len(places))
    while kept > 0:
        front = text[: places[kept - 1][1]]
        row = before + front + between + front
        (ids,), (spans,) = read_texts(tokenizer, [row], return_offsets=True)
        if len(ids) <= room:
            return front, ids, spans
        kept -= max(1, (len(ids) - room) // 2)  # a cut can take a token apart into several
    raise ValueError(f"No token of the text {text!r:.60} fits twice into {room} tokens with the echo's template.")


__all__ = ["ECHO_TEMPLATE", "PLAIN_ECHO_TEMPLATE", "EchoRow", "check_echo_room", "echo_frame", "echo_rows"]
