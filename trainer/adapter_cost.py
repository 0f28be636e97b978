"""What an unmerged adapter costs in time, against the same weights merged."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from modeling_magnet import MagnetSettings
from modeling_magnet.publishing.merging import merged_weights

# A twin beside the model must fit into memory, too.
LARGEST_MODEL = 1_000_000_000


def merged_twin(model: Any) -> Any:
    """The same model with its adapters merged, in memory.

    Args:
        model: One of our models, with an adapter.
    """
    config = copy.deepcopy(model.config)
    MagnetSettings.update(config, adapter_modes=None)
    with torch.device("meta"):
        twin = type(model)(config)
    # A contrastive head that was trained and is not kept is no part of the twin.
    own = twin.state_dict().keys()
    weights = {name: tensor.to(model.dtype) for name, tensor in merged_weights(model).items() if name in own}
    twin = twin.to_empty(device=model.device).to(model.dtype)
    # Buffers, such as the frequencies of positions, are not in the weights.
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        buffer.copy_(buffers[name])
    twin.load_state_dict(weights, strict=True, assign=True)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    twin.tokenizer = model.tokenizer
    return twin.eval()


def adapter_cost(model: Any, *, texts: list[str], new_tokens: int = 32, rounds: int = 5) -> dict[str, float]:
    """Times with the adapter over times merged, the medians of alternating rounds.

    Args:
        model: One of our models, with an adapter; bound to modes or not.
        texts (`list[str]`): What is encoded and continued.
        new_tokens (`int`): Length of a continuation and of a fill.
        rounds (`int`): How often everything is timed.

    Returns:
        `dict[str, float]`: ratios for `encode`, `infill` and `generate`.
    """
    twin = merged_twin(model)
    inputs = model.tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False).to(model.device)
    calls: dict[str, Callable[[Any], Any]] = {
        "encode": lambda one: one.encode(texts),
        "infill": lambda one: one.infill(texts[0], texts[-1], max_new_tokens=new_tokens),
        "generate": lambda one: one.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        ),
    }
    seconds: dict[tuple[str, bool], list[float]] = {}
    with model._evaluating():
        for number in range(rounds + 1):
            for name, call in calls.items():
                for one in (model, twin):
                    started = time.perf_counter()
                    call(one)
                    if one.device.type == "cuda":
                        torch.cuda.synchronize()
                    if number:  # the first round warms up
                        seconds.setdefault((name, one is twin), []).append(time.perf_counter() - started)
    return {name: statistics.median(seconds[name, False]) / statistics.median(seconds[name, True]) for name in calls}


__all__ = ["LARGEST_MODEL", "adapter_cost", "merged_twin"]
