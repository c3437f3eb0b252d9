"""Hooks that run beside the training: log, trackers, scores, views and checkpoints, and those that a user adds."""

from __future__ import annotations

import json
import sys
from typing import IO, TYPE_CHECKING

from vpretrain import distributed
from vpretrain.errors import Paused
from vpretrain.method.algorithm import StepRecord
from vpretrain.modality import modality_of
from vpretrain.pretrained import first_line
from vpretrain.run.log import METRICS, SCORES, VIEWS, append
from vpretrain.run.tracking import Trackers
from vpretrain.types import Json

if TYPE_CHECKING:
    from vpretrain.run.session import Session

_LOOKS = 5  # equal parts of the budget, after each of which views are recorded; also before the first step


class Hook:
    """A callback of a run; every method does nothing unless it is overridden.

    All processes call all methods together, while the budget's clock is stopped. Anything that a later step depends on belongs
    in `state_dict`.

    Example:
        class Stop(Hook):
            def after_step(self, session, record):
                if record.loss < 0.5:
                    session.budget.stop()  # saves the run and raises Paused

        run_recipe(recipe, hooks=[Stop()])
    """

    def before_run(self, session: Session) -> None:
        """Called first; the directory is still as an earlier part of the run left it."""

    def before_training(self, session: Session) -> None:
        """Called after loading, before the first step or the next one of a resumed run."""

    def after_step(self, session: Session, record: StepRecord) -> None:
        """Called after each learner step; `session.line` is its line in the log."""

    def after_training(self, session: Session) -> None:
        """Called when the budget is spent and a checkpoint written."""

    def after_run(self, session: Session, result: Json) -> None:
        """Called when the run was evaluated and exported."""

    def close(self) -> None:
        """Called when the run has ended, in any way."""

    def state_dict(self) -> Json:
        """Return the hook's state for a checkpoint, as JSON."""
        return {}

    def load_state_dict(self, state: Json) -> None:
        """Restore the state."""


class MetricsLog(Hook):
    """Write one line per step to metrics.jsonl."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def before_training(self, session: Session) -> None:
        if distributed.is_rank_0():
            self._file = (session.directory / METRICS).open("a", encoding="utf-8")

    def after_step(self, session: Session, record: StepRecord) -> None:
        if self._file is not None:
            self._file.write(json.dumps(session.line) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Tracking(Hook):
    """Send metrics to the trackers that the recipe names."""

    def __init__(self) -> None:
        self._trackers: Trackers | None = None
        self._finished = False

    def before_run(self, session: Session) -> None:
        main = distributed.is_rank_0()
        self._trackers = Trackers(session.recipe, session.budget.step, resumed=session.resumed, main=main)

    def log(self, kind: str, figures: Json, step: int) -> None:
        """Send metrics to all trackers."""
        if self._trackers is not None:
            self._trackers.log(kind, figures, step)

    def after_step(self, session: Session, record: StepRecord) -> None:
        self.log("train", session.line, record.step)

    def after_run(self, session: Session, result: Json) -> None:
        self._finished = True
        self.log("evaluation", result, result["steps"])
        if self._trackers is not None:
            key, (_, title) = next(iter(modality_of(session.recipe).metrics.objectives.items()))
            value = "" if result.get(key) is None else f", {title} {result[key]:.4g}"
            self._trackers.notify(f"finished: {result['steps']:,} steps{value}", "INFO")

    def close(self) -> None:
        if self._trackers is None:
            return
        error = sys.exception()  # with which the run ends, or in whose handler it was called; a pause is no end
        if error is not None and not self._finished and not isinstance(error, Paused):
            self._trackers.notify(f"ended early: {first_line(error)}", "WARN")
        self._trackers.close()


class Scores(Hook):
    """Write evaluations along the run to scores.jsonl and to the trackers, without effect on the run."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def after_step(self, session: Session, record: StepRecord) -> None:
        if not session.passed(session.recipe.evaluation.points or 0):  # the last evaluation is in the result
            return
        unit = session.recipe.unit
        line = {"step": record.step, "seconds": session.budget.seconds, unit: session.totals["read"]}
        line |= append(session.directory / SCORES, line, session.evaluate)
        self._tracking.log("evaluation", line, record.step)


class Views(Hook):
    """Write the designer's output for a few examples to views.jsonl, from time to time; -1 is before the first step."""

    def before_training(self, session: Session) -> None:
        if not session.resumed:
            self._record(session, -1)

    def after_step(self, session: Session, record: StepRecord) -> None:
        if session.passed(_LOOKS):
            self._record(session, record.step)

    def after_training(self, session: Session) -> None:
        if session.budget.step:
            self._record(session, session.budget.step - 1)

    def _record(self, session: Session, step: int) -> None:
        if session.parts.look is not None:
            line = {"step": step, "seconds": session.budget.seconds}
            append(session.directory / VIEWS, line, session.parts.look)


class Checkpoints(Hook):
    """Write checkpoints at intervals of steps or minutes. Comes last, so that they include the work of the other hooks."""

    def __init__(self) -> None:
        self._saved_at = 0.0

    def before_training(self, session: Session) -> None:
        self._saved_at = session.budget.seconds

    def after_step(self, session: Session, record: StepRecord) -> None:
        every, since = session.recipe.checkpoint, session.budget.seconds - self._saved_at
        by_steps = every.every_steps is not None and (record.step + 1) % every.every_steps == 0
        if by_steps or (every.every_minutes is not None and since >= 60 * every.every_minutes):
            session.save()
            self._saved_at = session.budget.seconds
