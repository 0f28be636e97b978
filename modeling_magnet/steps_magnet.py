"""One decoding step after the other: tokens of all spans -> their states, with keys that grow or with fixed shapes.

Shapes: B rows, C context tokens in the longest row, K spans in the row that has most, T steps, R room of the cache, at
least C + T * K, H hidden size.
"""

from collections.abc import Callable
from functools import cached_property
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import CompileConfig

from .attention_magnet import MASK_IS_OURS
from .cache_magnet import ReservedCache
from .masking_magnet import PACKED_BACKENDS, layer_windows, render_for_layers

# Room of a cache with fixed shapes: texts of about one length share a compiled graph, and kernels like the alignment.
STATIC_MULTIPLE = 64


class StepMask:
    """The mask of every step: a span sees the context, and its own token of each step so far.

    Args:
        model (`PreTrainedModel`): Says what its layers want to be handed.
        visible (`torch.BoolTensor` of shape `(B, C)`): Context that spans may attend to.
        context_positions (`torch.LongTensor` of shape `(B, C)`): Its positions.
        starts (`torch.LongTensor` of shape `(B, K)`): Position of each span's first token of this run.
        num_steps (`int`): T.
        capacity (`int`): R.
    """

    def __init__(
        self,
        model: Any,
        visible: torch.Tensor,
        *,
        context_positions: torch.Tensor,
        starts: torch.Tensor,
        num_steps: int,
        capacity: int,
    ) -> None:
        self.windows = layer_windows(model.config)
        self.backend = str(model.config._attn_implementation)
        self.dtype = model.dtype
        self.context, self.num_slots = visible.shape[1], starts.shape[1]
        self.starts = starts
        own = torch.eye(self.num_slots, dtype=torch.bool, device=visible.device).repeat(1, num_steps)  # (K, T * K)
        rows = visible[:, None].expand(-1, self.num_slots, -1)  # (B, K, C)
        allowed = torch.cat([rows, own.expand(len(rows), -1, -1)], dim=-1)[:, None]  # (B, 1, K, C + T * K)
        steps = torch.arange(num_steps, device=visible.device)
        fed = (starts[:, None, :] + steps[:, None]).flatten(1)  # (B, T * K)
        unused = capacity - allowed.shape[-1]
        self.allowed = torch.nn.functional.pad(allowed, (0, unused))  # (B, 1, K, R)
        self.key_positions = torch.nn.functional.pad(torch.cat([context_positions, fed], dim=1), (0, unused))
        self.columns = torch.arange(capacity, device=visible.device)
        if any(self.windows.values()):
            farthest = int(self.key_positions.max())  # from position 0; read once for all steps
            reach = {kind: window for kind, window in self.windows.items() if window is not None and window < farthest}
            self.windows = {kind: reach.get(kind) for kind in self.windows}

    @cached_property
    def rendered(self) -> Any:
        """One tensor is rendered once and cut; a block mask cannot be cut, and windows move with the queries."""
        renders_once = self.backend not in PACKED_BACKENDS and not any(self.windows.values())
        return self._render(self.allowed, self.starts, self.key_positions) if renders_once else None

    def at(self, step: int, *, num_rows: int) -> Any:
        """What the back-end is handed when token `step` of the first rows' spans is fed, for the keys seen by then."""
        seen = self.seen_after(step)
        if self.rendered is not None:
            return _cut(self.rendered, num_rows=num_rows, seen=seen)
        return self._render(
            self.allowed[:num_rows, :, :, :seen], self.starts[:num_rows] + step, self.key_positions[:num_rows, :seen]
        )

    def of_all_room(self, step: int) -> Any:
        """The same for all rows and all room of the cache, so that each step's has the same shape."""
        allowed = self.allowed & (self.columns < self.seen_after(step))
        return self._render(allowed, self.starts + step, self.key_positions)

    def seen_after(self, step: int) -> int:
        """Keys in the cache once token `step` of every span was fed."""
        return self.context + (step + 1) * self.num_slots

    def _render(self, allowed: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor) -> Any:
        return render_for_layers(
            allowed,
            windows=self.windows,
            query_positions=query_positions,
            key_positions=key_positions,
            implementation=self.backend,
            dtype=self.dtype,
        )


class GrowingSteps:
    """Steps that read as many keys as there are, and rows that are done no more.

    Args:
        model (`PreTrainedModel`): The model.
        cache (`ReservedCache`): With the context of all rows.
        mask (`StepMask`): Of all steps.
    """

    def __init__(self, model: Any, cache: ReservedCache, mask: StepMask) -> None:
        self.model, self.cache, self.mask = model, cache, mask

    def __call__(self, tokens: torch.Tensor, step: int, *, num_rows: int) -> torch.Tensor:
        """Feed token `step` of all spans, `(B, K)`; returns states `(num_rows, K, H)`."""
        self.cache.keep_first_rows(num_rows)
        return _states(
            self.model.base_model,
            tokens[:num_rows],
            self.mask.at(step, num_rows=num_rows),
            self.mask.starts[:num_rows] + step,
            self.cache,
        )


class StaticSteps:
    """Steps with the same shapes and addresses: on a GPU one graph, launched at once.

    A step of one row launches hundreds of kernels of a few microseconds each, which takes a GPU's host several times
    as long as reading the weights takes the GPU. The price is attention to all room of the cache, much of it empty,
    and on a GPU the recording, as long as some three growing steps, for every batch and chunk.

    Args:
        model (`PreTrainedModel`): The model.
        cache (`ReservedCache`): With the context of all rows; its shapes are fixed from now on.
        mask (`StepMask`): Of all steps.
        compile_config (`CompileConfig`, *optional*): To fuse kernels with, before they are captured.
    """

    def __init__(
        self, model: Any, cache: ReservedCache, mask: StepMask, *, compile_config: CompileConfig | None
    ) -> None:
        self.model, self.cache, self.mask = model, cache, mask
        self.forward = _states if compile_config is None else _compiled(model, compile_config)
        device = mask.starts.device
        self.columns = torch.zeros(mask.num_slots, dtype=torch.long, device=device)
        self.slots = torch.arange(mask.num_slots, device=device)
        self.tokens, self.positions = torch.zeros_like(mask.starts), torch.zeros_like(mask.starts)
        self.masks = mask.of_all_room(0)
        cache.fix_shapes(self.columns)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.states: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor, step: int, *, num_rows: int) -> torch.Tensor:
        """Feed token `step` of all spans, `(B, K)`; returns states `(B, K, H)`, which the next step overwrites."""
        self.columns.copy_(self.slots + self.mask.seen_after(step - 1))
        self.tokens.copy_(tokens)
        self.positions.copy_(self.mask.starts + step)
        _copy_masks(self.mask.of_all_room(step), to=self.masks)
        if tokens.device.type != "cuda":
            return self._forward()
        if self.graph is None:
            self._capture()
        assert self.graph is not None and self.states is not None
        self.graph.replay()
        return self.states

    def _forward(self) -> torch.Tensor:
        return self.forward(self.model.base_model, self.tokens, self.masks, self.positions, self.cache)

    def _capture(self) -> None:
        """Record the kernels of a step. It may run any number of times: it writes the same to the same columns.

        Raises:
            ValueError: a model that reads values back in a forward, or is on several devices.
        """
        device, before = self.tokens.device, torch.cuda.current_stream(self.tokens.device)
        try:
            with torch.cuda.device(device):
                # One for each device and for good: libraries keep memory for every stream that they have seen.
                if device not in _STREAMS:
                    _STREAMS[device] = torch.cuda.Stream(device)
                aside = _STREAMS[device]
                aside.wait_stream(before)
                with torch.cuda.stream(aside):  # compiles, and sets libraries up, which cannot be recorded
                    for _ in range(2):
                        self._forward()
                before.wait_stream(aside)
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
                    self.states = self._forward()
        except torch.OutOfMemoryError:
            torch.cuda.set_stream(before)
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(before)
            raise ValueError(
                "The decoding step of this model cannot be recorded as a CUDA graph. Leave out "
                "`cache_implementation='static'`."
            ) from error


def _states(
    base_model: Any, tokens: torch.Tensor, masks: Any, positions: torch.Tensor, cache: ReservedCache
) -> torch.Tensor:
    """States `(B, K, H)` of the tokens of a step."""
    outputs = base_model(
        input_ids=tokens,
        attention_mask=masks,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **{MASK_IS_OURS: True},
    )
    return outputs.last_hidden_state


# Streams that steps are recorded on, and compiled forms of `_states`: of each model its own, because the number of
# shapes that one function is compiled for is limited.
_STREAMS: dict[torch.device, "torch.cuda.Stream"] = {}
_COMPILED: WeakKeyDictionary[Any, dict[str, Callable[..., torch.Tensor]]] = WeakKeyDictionary()


def _compiled(model: Any, config: CompileConfig) -> Callable[..., torch.Tensor]:
    """`_states`, compiled; without inductor's own graphs, which do not take a cache that is written in place."""
    arguments = config.to_dict()
    without_graphs = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
    arguments["mode"] = without_graphs.get(arguments["mode"], arguments["mode"])
    forms = _COMPILED.setdefault(model, {})
    if repr(arguments) not in forms:
        own = FunctionType(_states.__code__.replace(co_name=f"states_{id(model)}"), globals())
        forms[repr(arguments)] = torch.compile(own, **arguments)
    return forms[repr(arguments)]


def _cut(masks: Any, *, num_rows: int, seen: int) -> Any:
    """The first rows and keys of a mask, or of one for each kind of layer."""
    if isinstance(masks, dict):
        return {kind: mask[:num_rows, :, :, :seen] for kind, mask in masks.items()}
    return masks[:num_rows, :, :, :seen]


def _copy_masks(masks: Any, *, to: Any) -> None:
    """Overwrite the mask of a step, or one for each kind of layer."""
    if isinstance(masks, dict):
        for kind, mask in masks.items():
            to[kind].copy_(mask)
    else:
        to.copy_(masks)


__all__ = ["STATIC_MULTIPLE", "GrowingSteps", "StaticSteps", "StepMask"]
