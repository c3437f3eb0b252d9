"""Processes that are stopped at their limit, and the time that is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpretrain.errors import UserError

ROOT = Path(__file__).parents[2]


class Unfinished(Exception):
    """A part ended before it was done; the text says why."""


class Clock:
    """Counts down from a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())


def lines(command: Sequence[str], limit_s: float, *, accept: Sequence[int] = (0,)) -> Iterator[str]:
    """Yield the lines that a command prints, as they come.

    Args:
        command: started in the repository's root, in its own process group.
        limit_s: seconds after which the whole group is killed.
        accept: exit codes that are no failure.

    Raises:
        Unfinished: it was stopped at its limit.
        UserError: it failed.
    """
    late = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def stop() -> None:
        late.set()
        kill()

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "200"}, process_group=0
    )
    timer = threading.Timer(limit_s, stop)
    timer.start()
    try:
        for line in process.stdout or ():
            yield line.rstrip("\n")
        code = process.wait()
    finally:  # also when the reader of these lines is interrupted
        timer.cancel()
        kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if late.is_set():
        raise Unfinished(f"stopped after {limit_s:.0f} s")
    if code not in accept:
        raise UserError(f"{' '.join(command[1:4])} failed (exit code {code}); its message stands above")
