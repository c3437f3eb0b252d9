"""Make the runs of a comparison in forks of this process, which has imported everything: they start at once, each on its own.

A fork loses the threads of its parent: call torch.set_num_threads(1) in the parent first of all, and run no backward pass
there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any


class Fork:
    """A function running in a fork, with the interface of `vpretrain.compare.runs.Process`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_alone, args=(function, *arguments))
        self._process.start()

    def send_signal(self, number: int) -> None:
        """Send a signal to the fork alone."""
        if self._process.pid is not None:
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Wait for the fork, and return its exit code."""
        self._process.join()
        return self._process.exitcode or 0


def start_fork(command: Sequence[str]) -> Fork:
    """Start `vpretrain COMMAND` in a fork."""
    from vpretrain.language import assemble  # noqa: F401  (before the fork, once)

    return Fork(_quietly, list(command))


def _alone(function: Callable[..., Any], *arguments: Any) -> None:
    """Run in a separate process group, so that an interruption from the terminal arrives once, through the parent."""
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    code = function(*arguments)
    raise SystemExit(code if isinstance(code, int) else 0)


def _quietly(command: Sequence[str]) -> int:
    from vpretrain.cli.parser import main

    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        return main(command)
