"""The time of a step by phase: the phases of the loop have names, and are timed only inside `watching`."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

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

    def switch(self, opened: str | None) -> None:
        """Charge the time since the last switch to the innermost open phase; then open one or, by None, close that."""
        end = now()  # work that was queued in a phase belongs to it
        if self._open:
            self.seconds[self._open[-1]] += end - self._since
        if opened is None:
            self._open.pop()
        else:
            self._open.append(opened)
        self._since = time.perf_counter()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Time a part of a step, as `vpretrain profile` reports it."""
    if _watching is None:
        yield
        return
    _watching.switch(name)
    try:
        yield
    finally:
        _watching.switch(None)


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Time all phases until the end of the block."""
    global _watching
    _watching = Watch()
    try:
        yield _watching
    finally:
        _watching = None
