"""One process at a time in a run's directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vpretrain.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be, for as long as this process works in it.

    The lock goes with the process, however it ends.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is at work in {directory}: wait for its end, or use name=...") from None
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; change `output`") from None
    try:
        yield
    finally:
        lock.release()
