"""Read a recipe's data as far as some time allows: what a run would meet in the middle is found before it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from vpretrain.config import StreamConfig
from vpretrain.console import steady
from vpretrain.errors import Unreadable
from vpretrain.run.skipped import Skipped

SECONDS = 30.0  # for all sources together

Item = TypeVar("Item")


class Reading(Generic[Item]):
    """The rows or images of one source, as far as a time and a number allow; what the stream would skip is counted.

    Args:
        role: of the source, e.g. "stream".
        origin: its name in messages.
        total: number of its rows or images; None if that is not known.
        stream: says what is skipped; None for feedback and evaluation, which skip nothing.
        most: maximum number that is read; None: no limit.
        unit: what each is, e.g. "row".
    """

    def __init__(
        self,
        role: str,
        origin: str,
        total: int | None,
        stream: StreamConfig | None,
        *,
        most: int | None = None,
        unit: str = "row",
    ) -> None:
        self.role, self.origin, self.total, self.most, self.unit = role, origin, total, most, unit
        self._skipped = None if stream is None else Skipped(origin, stream)
        self.read = 0
        self._late = False

    def items(self, outcomes: Iterable[Item | Unreadable], seconds: float) -> Iterator[Item]:
        """Yield what can be read within this time. Raises as `Skipped.met`, and Unreadable where nothing is skipped."""
        start = time.monotonic()
        with steady(f"{self.origin[-18:]:>18}", round(seconds), "seconds") as done:
            for found in itertools.islice(outcomes, self.most):
                fault = found if isinstance(found, Unreadable) else None
                if self._skipped is not None:
                    self._skipped.met(fault, again=False)
                elif fault is not None:
                    raise fault
                self.read += 1
                if not isinstance(found, Unreadable):
                    yield found
                spent = time.monotonic() - start
                done(min(spent, seconds))
                if spent >= seconds:
                    self._late = True
                    return

    def line(self) -> str:
        """Say how much was read, and what of it cannot be."""
        of = "" if self.total is None else f" of {self.total:,}"
        whole = not self._late and (self.read != self.most or self.read == self.total)
        part = f"all {self.read:,} {self.unit}s" if whole else f"the first {self.read:,}{of} {self.unit}s"
        if self.read == 1:
            part = f"the {'only' if whole else 'first'} {self.unit}"
        text = f"read {part} of {self.role} {self.origin}"
        if self._skipped is None or not self._skipped.count:
            return f"{text}: the time for it was over" if self._late else text
        place, reason = self._skipped.named[0]
        return f"{text}: {self._skipped.count:,} cannot be read and would be skipped, the first: {place} {reason}"


def shares(count: int, seconds: float) -> Iterator[float]:
    """Yield the seconds for each of several sources, such that what one leaves is shared by those after it."""
    end = time.monotonic() + seconds
    for left in range(count, 0, -1):
        yield max(0.0, end - time.monotonic()) / left
