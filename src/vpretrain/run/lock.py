"""A lock for one process at a time in a run's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vpretrain.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory, created if necessary, until the context or this process ends, in any way.

    Raises UserError if another process holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK).acquire(timeout=0.2)  # `holder` may hold it for an instant
    except Timeout:
        raise UserError(f"another process uses {directory}: wait for its end, or use name=...") from None
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; change `output`") from None
    with lock:
        yield


def holder(directory: Path) -> int | None:
    """Return the id of the process that has locked a directory; 0 if the id is unknown, None if there is no such process."""
    with contextlib.suppress(OSError), (directory / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _process_of(os.fstat(file.fileno()).st_ino)
    return None


def _process_of(inode: int) -> int:
    """Return the process that locks a file, by Linux's table; 0 without the table, or if it is in another container."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            _, kind, _, _, process, file, *_ = line.split()
            if kind == "FLOCK" and file.endswith(f":{inode}"):
                return max(0, int(process))
    return 0
