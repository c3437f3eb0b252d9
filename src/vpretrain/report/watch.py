"""A live view of a run or a comparison, from its files alone, without contact to the process or any writing."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vpretrain.config import Recipe
from vpretrain.console import minutes
from vpretrain.errors import UserError
from vpretrain.modality import modality_of
from vpretrain.recipe import load_recipe
from vpretrain.report.sparkline import Curve
from vpretrain.report.tail import Tail, read_object
from vpretrain.run.find import SUMMARIES, members, several
from vpretrain.run.lock import LOCK, holder
from vpretrain.types import Json

REFRESH_SECONDS = 1.0
_RECENT = 20  # steps that the speed is measured over


def watch(directory: Path, console: Console, *, once: bool = False) -> None:
    """Show a run, or a group of runs, until it is finished or Ctrl-C is pressed; `once`: show one frame only.

    Raises UserError: nothing was ever run there, or its recipe cannot be read.
    """
    view = open_view(directory)
    if once:
        view.update()
        console.print(view.frame())
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            if not view.begun:
                view = open_view(directory)  # a group looks like a run until its first member begins
            view.update()
            live.update(view.frame(), refresh=True)
            if view.finished:
                return
            time.sleep(REFRESH_SECONDS)


def open_view(directory: Path) -> RunView | GroupView:
    """Return the view for a directory. Raises UserError if no run has written it."""
    inside = members(directory)
    if not any((directory / name).exists() for name in ("recipe.yaml", LOCK)):
        if len(inside) == 1:
            return open_view(directory / inside[0])
        if inside:
            raise several(directory, [directory / name for name in inside])
        raise UserError(f"{directory} is no directory of a run: name one that `vpretrain run` or `compare` has made")
    if inside:
        return GroupView(directory)
    return RunView(directory)


class RunView:
    """One run. `update` reads what is new, `frame` shows it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe: Recipe | None = None
        self.result: Json | None = None
        self.process: int | None = None
        self.score: Json = {}
        self.begun_at = 0  # when its process began or went on, and wrote its recipe: nanoseconds since 1970
        self._log, self._scores = Tail(directory / "metrics.jsonl"), Tail(directory / "scores.jsonl")
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.last: Json = {}
        self.curves: dict[str, Curve] = {}
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def update(self) -> None:
        """Read what is new. Raises UserError if the recipe cannot be read."""
        self.process = holder(self.directory)
        self.result = read_object(self.directory / "result.json")
        recipe = self.directory / "recipe.yaml"
        with contextlib.suppress(OSError):
            if (changed := recipe.stat().st_mtime_ns) != self.begun_at:  # a resumed run may have another budget
                self.recipe, self.begun_at = load_recipe(recipe), changed
        if self.recipe is None:
            return
        anew, lines = self._log.read()
        if anew:
            self._begin_anew()
        for line in lines:
            self._add(line, self.recipe)
        anew, scores = self._scores.read()
        self.score = scores[-1] if scores else {} if anew else self.score

    def _add(self, line: Json, recipe: Recipe) -> None:
        if not all(_is_number(line.get(key)) for key in ("step", "seconds")):
            return
        self.last = line
        for key in modality_of(recipe).metrics.curves:
            if _is_number(line.get(key)):
                self.curves.setdefault(key, Curve()).add(line[key])
        if _is_number(line.get(recipe.unit)):
            self._recent.append((line["seconds"], line[recipe.unit]))

    @property
    def begun(self) -> bool:
        """Whether anything is logged."""
        return bool(self.last) or self.result is not None

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return self.result is not None and self.process is None

    @property
    def untouched(self) -> bool:
        """Whether it only evaluates the learner that the others begin from."""
        return self.recipe is not None and self.recipe.budget.steps == 0

    @property
    def steps(self) -> int:
        """The number of logged steps."""
        return int(self.last["step"]) + 1 if self.last else 0

    @property
    def fraction(self) -> float:
        """The fraction of the budget that is spent."""
        if self.result is not None or self._trained:
            return 1.0
        return self.recipe.budget.fraction(self.steps, self.last["seconds"]) if self.recipe and self.last else 0.0

    @property
    def _trained(self) -> bool:
        """Whether the budget is spent, by the run's own rule."""
        return self.recipe is not None and self.recipe.budget.reached(self.steps, self.last.get("seconds", 0.0))

    @property
    def state(self) -> str:
        """The state of the run: paused, if all training is saved; interrupted, if steps will be repeated."""
        if self.process is not None:
            return "evaluating" if self._trained else "running" if self.last else "starting"
        if self.result is not None:
            return "finished"
        saved = max((int(path.name[5:]) for path in self._checkpoints()), default=0)
        return "paused" if self.steps and saved == self.steps else "interrupted"

    def _checkpoints(self) -> Iterator[Path]:
        return (path for path in (self.directory / "checkpoints").glob("step-*") if path.name[5:].isdecimal())

    @property
    def speed(self) -> float | None:
        """Recent tokens or images per second of training; for a finished run, over all of it."""
        if self.result is not None and self.recipe is not None:
            return self.result.get(f"{self.recipe.unit}_per_s")
        if len(self._recent) < 2:
            return None
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if end > start else None

    @property
    def memory(self) -> str:
        """The present memory of the process, or the peak of a finished run."""
        if self.result is not None and "peak_memory_bytes" in self.result:
            return f"{self.result['peak_memory_bytes'] / 2**30:.2f} GiB at most"
        with contextlib.suppress(OSError, StopIteration):  # it has ended, or its id is not known
            lines = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8").splitlines()
            resident = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
            return f"{resident / 2**30:.2f} GiB"
        return "-"

    def scores(self) -> dict[str, str]:
        """Return the last evaluation in the form of tables."""
        found = self.score if self.result is None else self.result
        if self.recipe is None or not found:
            return {}
        shown = {}
        for name, show in modality_of(self.recipe).metrics.columns.items():
            with contextlib.suppress(LookupError, TypeError, ValueError):
                shown[name] = show(found)
        return {name: text for name, text in shown.items() if text != "-"}

    def frame(self) -> RenderableType:
        """Return the present view."""
        if self.recipe is None:
            what = "loading the learner and the data" if self.process is not None else "it has not begun"
            return Panel(Text(what), title=Text(f"{self.state}: {self.directory}"), title_align="left")
        facts = {"step": f"{self.steps:,}"} if self.last else {}
        facts |= {key: _number(curve.last) for key, curve in self.curves.items()}
        speed = self.speed
        rate = "-" if speed is None else f"{speed:.3g}" if speed < 100 else f"{speed:,.0f}"
        facts |= {f"{self.recipe.unit}/s": rate, "memory": self.memory}
        # In a narrow terminal columns move to the next line; cells of a grid would be broken.
        row = Columns((Text.assemble((f"{name} ", "dim"), text) for name, text in facts.items()), padding=(0, 3))
        parts: list[RenderableType] = [self._budget(self.recipe), row]
        for key, curve in self.curves.items():
            if curve.means:
                ends = f"  {_number(curve.means[0])} to {_number(curve.means[-1])}"
                parts.append(Text.assemble((f"{key:>6} ", "dim"), (curve.sparkline(), "cyan"), (ends, "dim")))
        if scores := self.scores():
            after = "at the end" if self.result is not None else f"after step {self.score['step']}"
            line = "   ".join(f"{name} {text}" for name, text in scores.items())
            parts.append(Text.assemble((f"evaluation {after}: ", "dim"), line))
        if self.state in ("paused", "interrupted"):
            remedy = " and --resume" if any(self._checkpoints()) else ": nothing was saved yet"
            parts.append(Text(f"go on with the same command{remedy}", "yellow"))
        process = f" (process {self.process})" if self.process else ""
        title = f"arm {self.recipe.arm}, {self.state}{process}: {self.directory}"
        return Panel(Group(*parts), title=Text(title), title_align="left")

    def _budget(self, recipe: Recipe) -> RenderableType:
        left = None if not self.last else recipe.budget.seconds_left(self.steps, self.last["seconds"])
        bar = Table.grid(padding=(0, 2))
        note = "" if self.result is not None else f"{minutes(left)} left of the budget"
        bar.add_row(ProgressBar(total=1.0, completed=self.fraction, width=40), f"{self.fraction:.0%}", note)
        return bar


class GroupView:
    """Several runs in one directory, and the active one."""

    begun = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members: dict[str, RunView] = {}
        self.process: int | None = None

    def update(self) -> None:
        """Read what is new; members appear as they begin. Raises UserError if a recipe cannot be read."""
        self.process = holder(self.directory)
        names = members(self.directory)
        self.members = {name: self.members.get(name) or RunView(self.directory / name) for name in names}
        for member in self.members.values():
            if not member.finished:
                member.update()

    @property
    def finished(self) -> bool:
        """Whether the group has its summary, and no run has begun since that has no result."""
        written = self._summary_written
        if self.process is not None or written is None:
            return False
        return not any(member.result is None and member.begun_at > written for member in self.members.values())

    @property
    def _summary_written(self) -> int | None:
        for name in SUMMARIES:
            with contextlib.suppress(OSError):
                return (self.directory / name).stat().st_mtime_ns
        return None

    @property
    def state(self) -> str:
        """The state of the group."""
        return "running" if self.process is not None else "finished" if self.finished else "interrupted"

    def frame(self) -> RenderableType:
        """Return all members, and the frame of the active one."""
        table = Table()
        for column in ("run", "state", "budget", "steps", "loss", "last evaluation"):
            table.add_column(column, justify="right" if column in ("budget", "steps", "loss") else "left")
        for name, member in self.members.items():
            loss = member.curves["loss"].last if "loss" in member.curves else None
            score = next((f"{what} {text}" for what, text in member.scores().items()), "-")
            shown = f"{member.fraction:.0%}", f"{member.steps:,}", _number(loss), score
            table.add_row(Text(name), member.state, *shown)
        at_work = [member for member in self.members.values() if member.process is not None]
        return Group(Text(f"{self.directory}: {self.state}"), table, *(member.frame() for member in at_work))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
