"""Which token a distribution gives: the most likely one, or a draw from a generator that belongs to one gap."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# What generate uses where neither the caller nor the checkpoint says anything.
DEFAULT_TOP_K = 50
SUPPORTED = ("do_sample", "temperature", "top_k", "top_p", "min_p")


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """The checkpoint's or caller's generation config with the call's own arguments on top.

    Raises:
        ValueError: an argument that filling a gap does not have.
    """
    unknown = sorted(set(overrides) - set(SUPPORTED))
    if unknown:
        raise ValueError(f"`infill` does not know {unknown}. It takes {', '.join(SUPPORTED)} of GenerationConfig.")
    if base.num_beams not in (None, 1):
        raise ValueError(f"`num_beams={base.num_beams}` in the generation config: a gap is not filled by beam search.")
    config = copy.deepcopy(base)
    config.update(**overrides)
    return config


class TokenChooser:
    """Greedy or sampled choice, with one stream of random numbers per gap.

    The seeds of the streams are drawn from torch's global generator in the order of the gaps, before anything is
    batched: after `torch.manual_seed`, a gap gets the same sample alone or in any batch, and one call with many texts
    gives what as many calls with one text give.

    Args:
        config (`GenerationConfig`): `do_sample`, `temperature`, `top_k`, `top_p` and `min_p` count.
        gap_lengths (`Sequence[int]`): Tokens of each gap, over all texts of the call.
        barred_ids (`Sequence[int]`): Tokens that never stand in a fill.
    """

    def __init__(self, config: GenerationConfig, *, gap_lengths: Sequence[int], barred_ids: Sequence[int]) -> None:
        self.barred_ids = list(barred_ids)
        self.uniforms: list[torch.Tensor] | None = None
        self.warpers = LogitsProcessorList()
        if not config.do_sample:
            return
        if config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        top_k = DEFAULT_TOP_K if config.top_k is None else config.top_k
        if top_k > 0:
            self.warpers.append(TopKLogitsWarper(top_k))
        if config.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            self.warpers.append(MinPLogitsWarper(config.min_p))
        self.uniforms = []
        for gap_length in gap_lengths:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            self.uniforms.append(torch.rand(gap_length, generator=generator, dtype=torch.float64))

    def choose(self, logits: torch.Tensor, *, gaps: Sequence[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One token for each of some gaps.

        Args:
            logits (`torch.FloatTensor` of shape `(N, V)`): One row per gap.
            gaps (`Sequence[int]`): Which gaps of the call the rows belong to.
            step (`int`): Which token of its gap is chosen, from 0.

        Returns:
            `tuple[torch.LongTensor, torch.FloatTensor]`, both of shape `(N,)`: the tokens, and their log-probability
            under the model's own distribution, before anything is barred or warped.

        Raises:
            ValueError: the logits are not numbers.
        """
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if torch.isnan(logprobs).any():
            raise ValueError(f"The model gave NaN logits for token {step} of a gap. Check its weights and dtype.")
        scores = logprobs.clone()
        scores[:, self.barred_ids] = -torch.inf
        if self.uniforms is None:
            tokens = scores.argmax(-1)
        else:
            scores = self.warpers(torch.empty(0, dtype=torch.long), scores)  # type: ignore[arg-type]
            cumulative = torch.softmax(scores.double(), dim=-1).cumsum(-1)
            wanted = torch.stack([self.uniforms[gap][step] for gap in gaps]).to(scores.device)
            # Scaled by the last sum, so that rounding cannot leave the draw behind the last token.
            tokens = torch.searchsorted(cumulative, (wanted * cumulative[:, -1])[:, None], right=True)[:, 0]
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


__all__ = ["TokenChooser", "merge_generation_config"]
