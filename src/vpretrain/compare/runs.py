"""A group of runs: in one directory, from one recipe, each in its own process."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Protocol

from vpretrain import pretrained
from vpretrain.config import Recipe
from vpretrain.console import minutes, note, switches
from vpretrain.errors import Interrupted, MachineError, Paused, UserError
from vpretrain.files import read_json
from vpretrain.plain import quoted
from vpretrain.recipe import load_recipe, refuse_changes, refuse_to_replace, save_recipe
from vpretrain.run.lock import LOCK, locked
from vpretrain.run.tracking import require
from vpretrain.types import Json

_MAY_CHANGE = {"arm", "checkpoint", "output", "threads", "tracking"}  # settings that a resumed group may change
# Settings in which a finished member may differ from what is asked for: a stage of `posttrain` begins below `output`.
_OF_MEMBERS = {"name", "checkpoint", "output", "threads", "tracking", "learner.name"}


class Process(Protocol):
    """A running command."""

    def send_signal(self, number: int) -> None: ...

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        ...


def start_process(command: Sequence[str]) -> Process:
    """Start `vpretrain COMMAND` in its own process and process group."""
    trust = ["--trust-remote-code"] if pretrained.trusted else []
    whole = [sys.executable, "-m", "vpretrain", *trust, *switches(), *command]
    return subprocess.Popen(whole, stdout=subprocess.DEVNULL, process_group=0)


def run_group(
    recipe: Recipe,
    members: Mapping[str, Sequence[str]],
    *,
    rounds: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    start: Callable[[Sequence[str]], Process] | None = None,
) -> dict[str, Json]:
    """Run all members in turn, each alone on the machine.

    Args:
        recipe: the recipe that they share; its directory contains theirs.
        members: name -> the member's own settings (`field=value`).
        rounds: turns per member, over equal parts of its budget, so that a machine that slows down affects all alike.
        resume: keep finished members, continue the interrupted one.
        overwrite: delete an earlier group of this name.
        start: starts a member's command, the words after `vpretrain`; None: `start_process`.

    Returns:
        Every member's result.

    Raises:
        UserError: the directory is taken, a finished member has other settings, or a member failed (its own message is printed
            above).
        Interrupted: a signal stopped it, after the current member had saved its state.
    """
    directory = recipe.directory
    with locked(directory):
        prepare_group(recipe, resume=resume, overwrite=overwrite)
        finished = {name for name in members if resume and (directory / name / "result.json").exists()}
        for name in finished:
            _refuse_another(directory, name, members[name])
            note(f"{name}: finished already")
        pace = _Pace(directory, members, rounds, finished)
        for turn in range(1, rounds + 1):
            for number, name in enumerate(members, start=1):
                if name in finished:
                    continue
                part = f", round {turn} of {rounds}" if rounds > 1 else ""
                note(f"{name}: run {number} of {len(members)}{part}{pace.left()}")
                again, until = resume or turn > 1, turn / rounds
                with pace.timed(name):
                    ended = run_member(directory, name, members[name], until=until, resume=again, start=start)
                if ended:
                    finished.add(name)
        return {name: read_json(directory / name / "result.json") for name in members}


def _refuse_another(directory: Path, name: str, settings: Sequence[str]) -> None:
    """Raise UserError if a finished member was made with other settings: an only seed, for one, is not in its name."""
    saved = directory / name / "recipe.yaml"
    if saved.exists():
        try:
            refuse_changes(load_recipe(directory / "recipe.yaml", [*settings]), saved, except_for=_OF_MEMBERS)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


class _Pace:
    """How long the turns of a group take: as long as those so far, or before these by the recipes.

    The untouched learner has one turn, which does not train, but shows how long loading and an evaluation take.
    """

    def __init__(
        self, directory: Path, members: Mapping[str, Sequence[str]], rounds: int, finished: Collection[str]
    ) -> None:
        self._directory = directory
        self._short = {name for name, settings in members.items() if "budget.steps=0" in settings}
        self._settings = [of for name, of in members.items() if name not in self._short and name not in finished]
        self._left = rounds * len(self._settings)
        self._evaluation: float | None = None
        self._spent: list[float] = []

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a turn of a member."""
        start = time.monotonic()
        yield
        spent = time.monotonic() - start
        if name in self._short:
            self._evaluation = spent
        else:
            self._spent.append(spent)
            self._left -= 1

    def left(self) -> str:
        """Return the time left for all turns, as text; empty if nothing shows it yet."""
        seconds = mean(self._spent) * self._left if self._spent else self._planned()
        return "" if seconds is None else f", about {minutes(seconds)} left in all"

    def _planned(self) -> float | None:
        """Return the seconds of all members by their budgets and evaluations; None if either is not known as time."""
        if self._evaluation is None:
            return None
        total = 0.0
        for settings in self._settings:
            recipe = load_recipe(self._directory / "recipe.yaml", [*settings])
            if recipe.budget.minutes is None or recipe.budget.steps is not None:
                return None
            total += 60 * recipe.budget.minutes + max(1, recipe.evaluation.points or 0) * self._evaluation
        return total


def run_member(
    directory: Path,
    name: str,
    settings: Sequence[str],
    *,
    until: float = 1.0,
    resume: bool,
    start: Callable[[Sequence[str]], Process] | None = None,
) -> bool:
    """Run one member of the group in a directory up to a fraction of its budget; `settings` and `start` as in `run_group`.

    Args:
        until: the fraction.
        resume: continue from its newest checkpoint, if it has one.

    Returns:
        Whether it is finished, rather than paused.

    Raises: as `run_group`.
    """
    again = "--resume" if resume and any((directory / name / "checkpoints").glob("step-*")) else "--overwrite"
    flags = [again] if until == 1 else [again, f"--until={until}"]
    where = [f"name={name}", f"output={quoted(str(directory))}"]  # YAML, which reads a bare 2026 as a number
    command = ["run", str(directory / "recipe.yaml"), *flags, *where, *settings]
    code = _wait((start or start_process)(command))
    if code == Paused.exit_code:
        return False
    number = -code if code < 0 else code - 128  # a process without a signal handler yet, or one with
    if number in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(number, "stopped: go on with the same command and --resume")
    if code:
        failed = MachineError if code == MachineError.exit_code else UserError
        raise failed(f"{name} failed (exit code {code}); mend it and go on with the same command and --resume")
    return True


def prepare_group(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Write the recipe into the group's locked directory. Raises UserError before any work if that holds another group."""
    require(recipe.tracking)
    if recipe.learner.device not in ("auto", "cpu"):  # else this process does without torch, and its memory
        from vpretrain.devices import available

        available(recipe.learner.device)
    saved = recipe.directory / "recipe.yaml"
    if not resume:
        refuse_to_replace(saved)  # and what is beside it
    if overwrite and not resume and saved.exists():
        # The recipe last: as long as one file of that group is there, nothing takes it for one of another.
        for path in sorted(recipe.directory.iterdir(), key=lambda path: path == saved):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if saved.exists():
        if not resume:
            raise UserError(
                f"{recipe.directory} holds runs already: add --resume to finish them, --overwrite to start anew (from Python "
                "resume=True, overwrite=True), or name=..."
            )
        refuse_changes(recipe, saved, except_for=_MAY_CHANGE)
    save_recipe(recipe, saved)


def _wait(process: Process) -> int:
    """Wait for a process, and pass signals that stop us on to it, so that a run saves its state."""
    passed_on: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        passed_on.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
        return code if code or not passed_on else 128 + passed_on[0]  # the process had ended already
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
