"""The time of a step by phase: the phases of the loop have names, and are timed only inside `watching`."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

_watching: Watch | None = None


def now() -> float:
    """Return the time in seconds, once everything that was queued on the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Watch:
    """Seconds spent in each phase; an inner phase does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def switch(self, change: Callable[[], object]) -> None:
        """Charge the time since the last switch to the innermost open phase, then open or close one."""
        end = now()  # work that was queued in a phase belongs to it
        if self._open:
            self.seconds[self._open[-1]] += end - self._since
        change()
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        """Open a phase."""
        self.switch(lambda: self._open.append(name))

    def leave(self) -> None:
        """Close the innermost phase."""
        self.switch(self._open.pop)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Time a part of a step, as `vpretrain profile` reports it."""
    if _watching is None:
        yield
        return
    _watching.enter(name)
    try:
        yield
    finally:
        _watching.leave()


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Time all phases until the end of the block."""
    global _watching
    _watching = Watch()
    try:
        yield _watching
    finally:
        _watching = None
