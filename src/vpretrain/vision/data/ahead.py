"""Read in order, with several threads that are a little ahead: decoding images leaves the interpreter to other threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")

_AHEAD = 64  # images, as large as they are kept


def ahead(read: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Yield what is read of each item, in order. An error is raised where its item's turn comes."""
    threads, reading = ThreadPoolExecutor(), deque[Future[Found]]()
    try:
        for item in items:
            reading.append(threads.submit(read, item))
            if len(reading) > _AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
