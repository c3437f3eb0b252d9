"""Progress with time left: a bar in a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

PLAIN_SECONDS = 15.0
# FORCE_COLOR does not make a terminal: Jupyter and CI set it although stderr is a pipe, in which no bar can move.
console = Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)


def minutes(seconds: float | None) -> str:
    """Format seconds as M:SS; None: unknown."""
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def warn(text: str) -> None:
    """Print a warning as it is: no name in it is markup, and no line is broken."""
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """Yield `update(share_done, seconds_left, note)`."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=12), TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"), TextColumn("{task.fields[note]}", style="dim"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=1.0, left="-:--", note="")
            yield lambda share, left, note: bar.update(task, completed=share, left=minutes(left), note=note)
        return
    last = time.monotonic()

    def line(share: float, left: float | None, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{title}: {share:.0%}, {minutes(left)} left  {note}", highlight=False)

    yield line


@contextlib.contextmanager
def steady(title: str, total: int) -> Iterator[Callable[[float], None]]:
    """Yield `done(parts)`, for work of equal parts; fractions count, and the time left is estimated from the pace."""
    start = time.monotonic()
    with progress(title) as update:
        yield lambda parts: update(
            parts / max(1, total),
            (time.monotonic() - start) * (total - parts) / parts if parts else None,
            f"{parts:.0f}/{total}",
        )
