"""Filling without a cache, a batch or a shared row: one full-mask forward for each token of each gap."""

import torch

from modeling_magnet.gaps_magnet import lay_out


def text_of(tokenizer, before, tokens):
    """What tokens add to the text of those in front of them."""
    whole = tokenizer.decode([*before, *tokens], clean_up_tokenization_spaces=False)
    return whole[len(tokenizer.decode(before, clean_up_tokenization_spaces=False)) :]


@torch.no_grad()
def next_logprobs(model, layout, gap, fill):
    """Log-probabilities `(V,)` of the token behind `fill` in a gap, from the text in its order, other gaps empty."""
    cells = [(position, token, 0) for position, token in zip(layout.positions, layout.token_ids, strict=True)]
    cells += [(layout.gap_starts[gap] + index, token, 1) for index, token in enumerate(fill)]
    positions, tokens, segments = (torch.tensor([column]) for column in zip(*sorted(cells), strict=True))
    logits = model(tokens, position_ids=positions, mode="infill", segment_ids=segments).logits[0]
    predictor = (positions[0] == layout.gap_starts[gap] + len(fill) - 1).nonzero().item()
    return torch.log_softmax(logits[predictor], -1)


def fill_by_loop(model, pieces, lengths, *, seeds=None, top_k=None):
    """Tokens and log-probabilities of each gap; greedy, or with a generator of its own for each gap."""
    tokenizer = model.tokenizer
    layout = lay_out(tokenizer, pieces, gap_lengths=lengths, context_length=10**6, heal="space")
    output = []
    for gap, length in enumerate(lengths):
        special = set(tokenizer.all_special_ids)
        before = [t for t in layout.token_ids[: layout.predictors[gap] + 1] if t not in special]
        draws = None
        if seeds is not None:
            draws = torch.rand(length, generator=torch.Generator().manual_seed(seeds[gap]), dtype=torch.float64)
        fill, logprobs = [], []
        for index in range(length):
            own = next_logprobs(model, layout, gap, fill)
            allowed = own.clone()
            allowed[sorted(special)] = -torch.inf
            if index == 0 and layout.seams[gap].start:
                bad = [t for t in range(len(own)) if not text_of(tokenizer, before, [t]).startswith(" ")]
                allowed[bad] = -torch.inf
            if draws is None:
                token = int(allowed.argmax())
            else:
                allowed[allowed < allowed.topk(top_k).values[-1]] = -torch.inf
                cumulative = torch.softmax(allowed.double(), -1).cumsum(-1)
                token = int((cumulative <= draws[index] * cumulative[-1]).sum())
            fill.append(token)
            logprobs.append(own[token].item())
        output.append((fill, logprobs))
    return output
