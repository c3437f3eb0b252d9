"""Batches made ahead by a process of their own, while the learner works on those before them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from vpretrain.task import Stream


def prefetched(stream: Any, steps: int, device: torch.device) -> Any:
    """The stream on a device: as it is, or read ahead by so many learner steps."""
    if steps:
        return Prefetched(stream, steps, device)
    stream.device = device
    return stream


class Prefetched:
    """A stream read ahead: the same batches, and the cursor of what was handed out.

    Args:
        stream: makes batches on the CPU; from now on nobody else may draw from it.
        steps: learner steps whose batches are kept ready.
        device: where batches go, through pinned memory if it is a GPU.
    """

    def __init__(self, stream: Stream, steps: int, device: torch.device) -> None:
        self.stream, self.steps, self.device = stream, steps, device
        self._made: Iterator[Any] | None = None
        self._state = stream.state_dict()

    def next(self) -> list[Any]:
        """The micro-batches of one learner step."""
        if self._made is None:
            self._made = iter(
                DataLoader(
                    _Steps(self.stream),
                    batch_size=None,
                    num_workers=1,  # one alone keeps the order
                    prefetch_factor=self.steps,
                    pin_memory=self.device.type == "cuda",
                    generator=torch.Generator(),  # else it draws a seed from the run's random numbers
                    worker_init_fn=_leave_signals_to_the_run,
                )
            )
        batches, state = next(self._made)
        if isinstance(batches, Exception):
            raise batches
        self._state = state
        return [batch.to(self.device) for batch in batches]

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a cursor: what was made beyond it is dropped."""
        self.stream.load_state_dict(state)
        self._state, self._made = state, None


class _Steps(IterableDataset[Any]):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        while True:
            try:
                batches = self.stream.next()
            except Exception as error:  # to be told as it would have been without a worker
                yield error, None
                return
            yield batches, self.stream.state_dict()


def _leave_signals_to_the_run(worker: int) -> None:
    """Terminals and schedulers signal all processes at once; the run saves itself, and its end is the worker's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
