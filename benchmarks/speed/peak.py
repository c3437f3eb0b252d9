"""Count bytes of live tensors, operation by operation: the same on every machine, without memory that a process caches."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakBytes(TorchDispatchMode):
    """A context whose `peak` is the most bytes that tensors made since it was entered have held at once.

    Memory that an operation allocates and frees internally is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_iter((arguments, keywords)) if _has_storage(t)}
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_iter(made):
            if _has_storage(tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._seen:
            return
        self._seen.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _has_storage(thing: Any) -> bool:
    return (
        isinstance(thing, torch.Tensor)
        and thing.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(thing)
    )
