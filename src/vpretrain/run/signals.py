"""SIGINT and SIGTERM in a run: training ends after the current step, with a checkpoint; repeatable work ends at once."""

from __future__ import annotations

import contextlib
import enum
import signal
import sys
from collections.abc import Callable, Iterator

from vpretrain import distributed
from vpretrain.console import warn

Phase = enum.Enum("Phase", ["START", "TRAINING", "EVALUATING", "SAVING", "END"])  # of a run
_NOW = {Phase.TRAINING: "step", Phase.EVALUATING: "evaluation"}  # what a signal lets the run finish


class Signals:
    """Handle a signal according to the phase of the run. A second one ends the process at once.

    Args:
        stop: ends training after the current step and its evaluation.
        interrupt: ends the run, given the signal's number.
    """

    def __init__(self, stop: Callable[[], None], interrupt: Callable[[int], None]) -> None:
        self._stop, self._interrupt = stop, interrupt
        self.phase = Phase.START
        self.received: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals inside the context, which surrounds the run."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def enter(self, phase: Phase) -> None:
        """Enter a phase; if it is the last, a signal that could not end the run earlier ends it now."""
        self.phase = phase
        if phase is Phase.END and self.received is not None:
            self._interrupt(self.received)

    def from_any_process(self) -> int | None:
        """Return the signal that any process has received; all processes call this together."""
        self.received = next((number for number in distributed.all_gather(self.received) if number is not None), None)
        return self.received

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            if self.phase in _NOW:
                warn("stopped without saving: steps since the last checkpoint will be made again")
            sys.exit(128 + number)
        self.received = number
        if self.phase in _NOW:
            self._stop()
            warn(f"stopping after this {_NOW[self.phase]}; once more to leave without saving")
        elif self.phase is not Phase.SAVING:
            self._interrupt(number)
