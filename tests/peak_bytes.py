"""Count the bytes of the tensors that a block allocates, for tests of memory."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class PeakBytes(TorchDispatchMode):
    """Count the bytes of the tensors that are allocated inside, and remember the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._known:  # from outside: weights and the batch
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._let_go, storage._cdata, 0)  # its address may be used again
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.held)
        return result

    def _let_go(self, key: int, size: int) -> None:
        self.held -= size
        self._known.discard(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Return the addresses of the tensors among some values."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
