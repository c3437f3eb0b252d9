"""Progress with time left: a bar in a terminal, a line from time to time elsewhere.

`quiet` leaves warnings and errors; `verbose` adds how long each piece of work took. Both are set by `verbosity`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

FIRST_SECONDS = 5.0  # until the first line of a work outside a terminal; shorter work prints none
_WIDTH = 140  # of tables outside a terminal
PLAIN_SECONDS = 15.0  # from line to line
_at_work = False  # whether `working` shows something
_terminal = sys.stderr is not None and sys.stderr.isatty()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence where nobody reads the progress any more, as after `2>&1 | head`: the work is worth more."""
        self.quiet = True


# FORCE_COLOR does not make a terminal: Jupyter and CI set it although stderr is a pipe, in which no bar can move.
console = _Console(stderr=True, force_terminal=None if _terminal else False)
quiet = verbose = False


def output() -> Console:
    """Return a console for results: in a file or a pipe no line is broken, and tables have more than 80 characters."""
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else _WIDTH, soft_wrap=not terminal)


@contextlib.contextmanager
def verbosity(*, less: bool = False, more: bool = False) -> Iterator[None]:
    """Set `quiet` and `verbose` within the context.

    Examples:
        >>> with verbosity(less=True):  # no progress, warnings alone
        ...     result = run_recipe(load_recipe("recipe.yaml"), overwrite=True)
    """
    global quiet, verbose
    before = quiet, verbose
    quiet, verbose = less, more
    try:
        yield
    finally:
        quiet, verbose = before


def switches() -> list[str]:
    """Return the switches by which another process of vpretrain says as much as this one."""
    return ["--quiet"] * quiet + ["--verbose"] * verbose


def minutes(seconds: float | None) -> str:
    """Format seconds as M:SS, or H:MM:SS from an hour; None: unknown."""
    if seconds is None:
        return "-:--"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def note(text: str) -> None:
    """Print a remark as it is, unless the console is quiet."""
    if not quiet:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning as it is: no name in it is markup, and no line is broken."""
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """Yield `update(share_done, seconds_left, note)`."""
    if quiet:
        yield lambda fraction, left, note: None
        return
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=12), TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"), TextColumn("{task.fields[note]}", style="dim", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=1.0, left="-:--", note="")
            yield lambda fraction, left, note: bar.update(task, completed=fraction, left=minutes(left), note=note)
        return
    due = time.monotonic() + FIRST_SECONDS

    def line(fraction: float, left: float | None, note: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PLAIN_SECONDS
            text = f"{title}: {fraction:.0%}, {minutes(left)} left  {note}".rstrip()
            console.print(text, markup=False, highlight=False)

    yield line


@contextlib.contextmanager
def steady(title: str, total: int, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Yield `done(parts)`, for work of equal parts; fractions count, and the time left is estimated from the pace.

    Args:
        title: of the line.
        total: parts.
        unit: what a part is, in the plural, such as steps; without it, parts are not counted in the line.
    """
    start = time.monotonic()
    with progress(title) as update:
        yield lambda parts: update(
            parts / max(1, total),
            (time.monotonic() - start) * (total - parts) / parts if parts else None,
            f"{parts:.0f}/{total} {unit}" if unit else "",
        )


@contextlib.contextmanager
def working(title: str, share: Callable[[], float] | None = None) -> Iterator[None]:
    """Show work that cannot tell how much is left: the time it has taken so far, in a log once that is noticeable.

    Work within other such work is part of it, and not shown by itself.

    Args:
        title: of the line.
        share: returns the fraction of the work that is done, for the time left in place of the time so far. It is called from
            another thread.
    """
    global _at_work
    if quiet:
        yield
        return
    start = time.monotonic()

    def told() -> str:
        seconds, done = time.monotonic() - start, share() if share else 0.0
        if not done:
            return f"{minutes(seconds)} so far"
        return f"{done:.0%}, {minutes(seconds * (1 - done) / done)} left"

    if _at_work:
        yield
    else:
        _at_work = True
        try:
            with _spinner(title, told) if console.is_terminal else _lines_of(title, told):
                yield
        finally:
            _at_work = False
    if verbose:
        note(f"{title}: {minutes(time.monotonic() - start)}")


class _Told(ProgressColumn):
    """What a function tells, asked twice a second."""

    max_refresh = 0.5

    def __init__(self, told: Callable[[], str]) -> None:
        super().__init__()
        self._told = told

    def render(self, task: Task) -> Text:
        return Text(self._told(), style="progress.elapsed")


@contextlib.contextmanager
def _spinner(title: str, told: Callable[[], str]) -> Iterator[None]:
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), _Told(told)
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(title, total=None)
        yield


@contextlib.contextmanager
def _lines_of(title: str, told: Callable[[], str]) -> Iterator[None]:
    over = threading.Event()

    def tell() -> None:
        pause = FIRST_SECONDS
        while not over.wait(pause):
            note(f"{title}: {told()}")
            pause = PLAIN_SECONDS

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
