"""Read batches ahead in a process of their own, while the learner trains on earlier ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor

import torch

from vpretrain.errors import UserError
from vpretrain.method.protocols import AnyBatch, Stream
from vpretrain.types import Json


def prefetched(stream: Stream, steps: int, device: torch.device) -> Stream:
    """Return the stream on a device: as it is, or read ahead by this number of learner steps."""
    if steps:
        return Prefetched(stream, steps, device)
    stream.device = device
    return stream


class Prefetched:
    """A stream that is read ahead: the same batches, and the cursor of those handed out.

    This is an executor and not a DataLoader: a DataLoader ends its workers by SIGTERM and waits for them, for ever if a
    worker ignores that signal, as ours does.

    Args:
        stream: makes batches on the CPU; nothing else may draw from it afterwards.
        steps: learner steps whose batches are kept ready.
        device: the device of the batches; they go through pinned memory if it is a GPU.
    """

    def __init__(self, stream: Stream, steps: int, device: torch.device) -> None:
        self.stream, self.steps = stream, steps
        self.device: torch.device | str = device
        self._pin = device.type == "cuda"
        self._worker: ProcessPoolExecutor | None = None
        self._made: deque[Future[tuple[list[AnyBatch], Json]]] = deque()
        self._state = stream.state_dict()

    def next(self) -> list[AnyBatch]:
        """Return the micro-batches of one learner step. Raises UserError if the process that reads them was killed."""
        if self._worker is None:  # a single worker keeps the order
            self.stream.load_state_dict(self._state)  # closes open files and connections: the worker shares none
            self._worker = ProcessPoolExecutor(1, initializer=_begin, initargs=(self.stream,))
            self._end = weakref.finalize(self, _shut_down, self._worker)
        try:
            while len(self._made) <= self.steps:
                self._made.append(self._worker.submit(_step))
            batches, self._state = self._made.popleft().result()
        except BrokenExecutor:
            raise UserError(
                "the process that reads the stream ahead was killed, perhaps for lack of memory: continue with --resume, or "
                "set stream.prefetch=0"
            ) from None
        if self._pin:
            batches = [batch.pin_memory() for batch in batches]
        return [batch.to(self.device) for batch in batches]

    def state_dict(self) -> Json:
        """Return the cursor."""
        return self._state

    def merge(self, states: Sequence[Json]) -> Json:
        """See `Stream`."""
        return self.stream.merge(states)

    def load_state_dict(self, state: Json) -> None:
        """Continue at a cursor; batches read beyond it are dropped."""
        if self._worker is not None:
            self._end()
        self.stream.load_state_dict(state)
        self._state, self._worker = state, None
        self._made.clear()


_stream: Stream  # the worker's own


def _shut_down(worker: ProcessPoolExecutor) -> None:
    """End the worker. Garbage may be collected in the executor's own thread, which cannot wait for itself."""
    worker.shutdown(wait=threading.current_thread() is threading.main_thread(), cancel_futures=True)


def _begin(stream: Stream) -> None:
    global _stream
    _stream = stream
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    # Terminals and schedulers signal all processes at once: the run saves its state, and the worker ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def _step() -> tuple[list[AnyBatch], Json]:
    return _stream.next(), _stream.state_dict()
