"""Check the tokenizer and the mask token."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from examples.checkup.findings import Finding, examine, judged, not_applicable

ROWS = (
    "tokenizer",
    "mask token",
    "EOS token",
    "padding token",
    "BOS token",
    "text there and back",
    "Unicode there and back",
)
ENGLISH = ("The cat sat on the mat.", "She ate the apple, and then (at 5 o'clock) went home!")
ODD = ("two  spaces, a tab\tand\na new line", "naïve café, Ωmega, Привет", "日本語のテキスト", "🙂 – “so”")


def vocabulary_findings(model: Any) -> Iterator[Finding]:
    """Yield rows for the tokenizer, its special tokens, the mask token, and texts there and back."""
    tokenizer = model._tokenizer_source.find()
    if tokenizer is None:
        yield judged(ROWS[0], False, f"none at {model._tokenizer_source.path!r}; put its files there")
        for name in ROWS[1:]:
            yield not_applicable(name, "there is no tokenizer")
        return
    size, embedded = len(tokenizer), model.config.vocab_size
    sizes = f"{type(tokenizer).__name__}, {size:,} tokens of {embedded:,} that the model embeds"
    yield judged(ROWS[0], size <= embedded, sizes + ("" if size <= embedded else ": ids without a vector"))
    yield from examine("mask token", lambda: mask_findings(model.magnet_settings.to_dict(), tokenizer, embedded))
    yield from examine("special tokens", lambda: special_findings(tokenizer, embedded))
    yield from examine("text there and back", lambda: text_findings(tokenizer))


def mask_findings(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, embedded: int) -> list[Finding]:
    """Return whether name and id of the mask token are of one real token."""
    token, token_id = settings["mask_token"], settings["mask_token_id"]
    told = f"{token!r} ({token_id})"
    faults = []
    if not isinstance(token_id, int) or not 0 <= token_id < embedded:
        faults.append(f"its id is not one of the {embedded:,} that the model embeds")
    else:
        given_back, found = tokenizer.convert_ids_to_tokens(token_id), tokenizer.convert_tokens_to_ids(token)
        if given_back != token:
            faults.append(f"the tokenizer calls id {token_id} {given_back!r}")
        if found != token_id:
            faults.append(f"the tokenizer gives {token!r} the id {found}")
        specials = {"unknown": tokenizer.unk_token_id, "BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
        faults += [f"it is the {name} token" for name, special in specials.items() if special == token_id]
    return [judged("mask token", not faults, told + ("" if not faults else ": " + "; ".join(faults)))]


def special_findings(tokenizer: PreTrainedTokenizerBase, embedded: int) -> list[Finding]:
    """Check EOS, whose output is the embedding, padding, and the tokens before a text."""

    def known(token_id: int | None) -> bool:
        return token_id is not None and 0 <= token_id < embedded

    eos, bos, pad = tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token
    eos_told = f"{eos!r} ({tokenizer.eos_token_id})" if eos is not None else "none, and `encode` reads its output"
    if pad is not None:
        padding = f"{pad!r} ({tokenizer.pad_token_id})"
    else:
        padding = f"no padding token; rows are padded with EOS {eos!r}" if eos is not None else "no token for it"
    own = tokenizer("a")["input_ids"]
    if bos is None:
        front = "none; texts begin with their own first token"
    elif own[:1] == [tokenizer.bos_token_id]:
        front = f"{bos!r} ({tokenizer.bos_token_id}) in front of every text, as the tokenizer itself puts it"
    else:
        front = f"{bos!r} ({tokenizer.bos_token_id}) in front of every text, though the tokenizer itself puts none"
    return [
        judged("EOS token", known(tokenizer.eos_token_id), eos_told),
        judged("padding token", known(tokenizer.eos_token_id if pad is None else tokenizer.pad_token_id), padding),
        judged("BOS token", bos is None or known(tokenizer.bos_token_id), front),
    ]


def text_findings(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Check that texts survive tokenization: English ones must, others where the vocabulary has them."""
    findings = []
    for name, texts in (("text there and back", ENGLISH), ("Unicode there and back", ODD)):
        changed, unknown = [], 0
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                unknown += 1
                continue
            back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            # Of a text's first space, vocabularies with word marks know only that there is a word.
            if back.removeprefix(" ") != text:
                changed.append(f"{text!r} comes back as {back!r}")
        held = len(texts) - unknown
        told = "; ".join(changed) or f"{held} of {len(texts)} texts come back as they went in"
        if unknown:
            told += f"; {unknown} have characters that this vocabulary lacks"
        if changed or held == len(texts) or texts is ENGLISH:
            findings.append(judged(name, not changed and (texts is ODD or not unknown), told))
        else:
            findings.append(not_applicable(name, told))
    return findings


__all__ = ["vocabulary_findings"]
