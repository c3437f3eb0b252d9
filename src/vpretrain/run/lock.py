"""One process at a time in a run's directory."""

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
    """Hold a directory, which is made if need be, for as long as this process works in it.

    The lock goes with the process, however it ends.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=0.2)  # `holder` may have it for an instant
    except Timeout:
        raise UserError(f"another process is at work in {directory}: wait for its end, or use name=...") from None
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; change `output`") from None
    try:
        yield
    finally:
        lock.release()


def holder(directory: Path) -> int | None:
    """The process at work in a directory; 0: there is one, and nothing says which; None: there is none."""
    with contextlib.suppress(OSError), (directory / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _process_of(os.fstat(file.fileno()).st_ino)
    return None


def _process_of(inode: int) -> int:
    """Whose lock a file has, by Linux's table; 0 where there is no such table, or the process is of another container."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            _, kind, _, _, process, file, *_ = line.split()
            if kind == "FLOCK" and file.endswith(f":{inode}"):
                return max(0, int(process))
    return 0
