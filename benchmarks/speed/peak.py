"""Count bytes of live tensors, operation by operation: the same on every machine, without memory that a process caches."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from statistics import median
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


def in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, called: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Any]]:
    """Return `seconds`, the median of so many interleaved repeats, and `peak_bytes` of the first call, which is the warm-up.

    Args:
        calls: by name; what they return is freed after the clock has stopped.
        repeats: of each call.
        called: is called before each of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, int] = {}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            called()
            if turn == 0:
                with PeakBytes() as watched:
                    call()
                peaks[name] = watched.peak
            else:
                start = time.perf_counter()
                made = call()
                seconds[name].append(time.perf_counter() - start)
                del made
    return {name: {"seconds": median(seconds[name]), "peak_bytes": peaks[name]} for name in calls}
