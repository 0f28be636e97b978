"""Fill without a cache, a batch or a shared row: one full-mask forward for each token of each blank."""

from functools import lru_cache
from itertools import islice

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from modeling_magnet.spans_magnet import lay_out


def text_of(tokenizer, before, tokens):
    """Return what tokens add to the text of those in front of them."""
    whole = tokenizer.decode([*before, *tokens], clean_up_tokenization_spaces=False)
    return whole[len(tokenizer.decode(before, clean_up_tokenization_spaces=False)) :]


@lru_cache(maxsize=4)
def bytes_of_tokens(tokenizer):
    """Return the bytes of each token, in byte-level vocabularies and in those with `<0xE4>`."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if "<0xE4>" in tokens:
        return [bytes([int(t[3:5], 16)]) if t.startswith("<0x") and len(t) == 6 else t.encode() for t in tokens]
    return [bytes(letters[c] for c in t) if {*t} <= {*letters} else t.encode() for t in tokens]


def keeps_characters(written, left):
    """Return whether bytes are whole characters, but for one that as many further bytes can complete."""
    ends = [b"", *(bytes([byte]) + b"\x80" * more for more in range(min(left, 3)) for byte in range(0x80, 0xC0))]
    return any(is_utf8(written + end) for end in (ends if left else ends[:1]))


def is_utf8(written):
    """Return whether bytes are text."""
    try:
        written.decode()
    except UnicodeDecodeError:
        return False
    return True


@torch.no_grad()
def next_logprobs(model, layout, blank, fill):
    """Return log-probabilities `(V,)` of the token after `fill` in a blank, from the text with other blanks empty."""
    cells = [(position, token, 0) for position, token in zip(layout.positions, layout.token_ids, strict=True)]
    cells += [(layout.span_starts[blank] + index, token, 1) for index, token in enumerate(fill)]
    positions, tokens, segments = (torch.tensor([column]) for column in zip(*sorted(cells), strict=True))
    logits = model(tokens, position_ids=positions, mode="infill", segment_ids=segments).logits[0]
    predictor = (positions[0] == layout.span_starts[blank] + len(fill) - 1).nonzero().item()
    return torch.log_softmax(logits[predictor], -1)


def fill_by_loop(model, parts, lengths, *, seeds=None, top_k=None):
    """Return tokens and log-probabilities of each blank; greedy, or with a generator of its own for each blank."""
    tokenizer = model.tokenizer
    layout = lay_out(tokenizer, parts, span_lengths=lengths, context_length=10**6, heal="space")
    output = []
    for blank, length in enumerate(lengths):
        special = set(tokenizer.all_special_ids)
        before = [t for t in layout.token_ids[: layout.predictors[blank] + 1] if t not in special]
        draws = None
        if seeds is not None:
            draws = torch.rand(length, generator=torch.Generator().manual_seed(seeds[blank]), dtype=torch.float64)
        fill, logprobs = [], []
        for index in range(length):
            own = next_logprobs(model, layout, blank, fill)
            allowed = own.clone()
            allowed[sorted(special)] = -torch.inf
            if index == 0 and layout.healed[blank].start:
                bad = [t for t in range(len(own)) if not text_of(tokenizer, before, [t]).startswith(" ")]
                allowed[bad] = -torch.inf
            token_bytes = bytes_of_tokens(tokenizer)
            written = b"".join(token_bytes[t] for t in fill)
            likeliest = (t for t in allowed.argsort(descending=True).tolist() if allowed[t] > -torch.inf)
            whole = (t for t in likeliest if keeps_characters(written + token_bytes[t], length - 1 - index))
            kept = list(islice(whole, top_k or 1))
            if draws is None:
                (token,) = kept
            else:
                allowed[[t for t in range(len(own)) if t not in kept]] = -torch.inf
                cumulative = torch.softmax(allowed.double(), -1).cumsum(-1)
                token = int((cumulative <= draws[index] * cumulative[-1]).sum())
            fill.append(token)
            logprobs.append(own[token].item())
        output.append((fill, logprobs))
    return output
