"""One run: an arm under its budget, with its log, its checkpoints, its evaluation and its exported model.

A run directory contains recipe.yaml, metrics.jsonl (one line per step), scores.jsonl (one line per evaluation along the run),
views.jsonl (vision: the designer's views of a few images, from time to time), checkpoints/, model/ with its card,
provenance.json (data, versions, date, commit, hardware), skipped.jsonl (what of the stream could not be read, if anything),
result.json, and the trackers' files. Several processes train and evaluate together; rank 0 decides and writes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vpretrain import distributed
from vpretrain.config import Recipe
from vpretrain.console import progress, warn, working
from vpretrain.errors import Interrupted, NonFinite, Paused, UserError
from vpretrain.method.algorithm import StepRecord
from vpretrain.recipe import save_recipe
from vpretrain.run import skipped
from vpretrain.run.budget import Budget
from vpretrain.run.checkpoint import checkpoints, load_newest, save_checkpoint
from vpretrain.run.circumstances import commit
from vpretrain.run.dry_run import few_steps, planned_steps
from vpretrain.run.finish import finish
from vpretrain.run.hooks import Checkpoints, Hook, MetricsLog, Scores, Tracking, Views
from vpretrain.run.log import LOGS, cut
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.replay import write_replay
from vpretrain.run.signals import Phase, Signals
from vpretrain.run.skipped import TooManySkipped
from vpretrain.run.state import StepSnapshot, captured, restore
from vpretrain.run.train import schedule_of, train
from vpretrain.types import Json

_GO_ON = "continue with --resume (from Python resume=True)"


class Session:
    """Run one recipe in its directory, which `prepare_directory` has created. For the arguments see `run_recipe`.

    Attributes:
        budget: the budget, and how much of it is spent.
        totals: `read`, in the recipe's unit, and `meta_updates`.
        side: sums over steps of the tasks' scalar side information.
        line: the last step's line in the log.
        commit: of the source, when the session began.
    """

    def __init__(
        self, recipe: Recipe, parts: Parts, *, resume: bool = False, until: float = 1.0, hooks: Sequence[Hook] = ()
    ) -> None:
        self.recipe, self.parts, self.resumed = recipe, parts, resume
        self.directory = recipe.directory
        self.commit = commit() if distributed.is_rank_0() else None
        self.budget = Budget(recipe.budget, until=until)
        self.optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer)
        self.totals: dict[str, float] = {"read": 0, "meta_updates": 0}
        self.side: dict[str, float] = {}
        self.line: Json = {}
        self._fraction_before = self._fraction = 0.0
        self._signals = Signals(self.budget.stop, self._interrupt)
        tracking = Tracking()
        self._own = list(hooks)
        self.hooks: list[Hook] = [MetricsLog(), tracking, Scores(tracking), Views(), *hooks, Checkpoints()]
        if resume:
            self._load()
        elif distributed.rank():
            torch.manual_seed(recipe.seed + 1_000_003 * distributed.rank())  # each process has its own dropout

    def run(self) -> Json:
        """Train until the budget is spent, evaluate, export; return and write result.json.

        Raises:
            UserError: the run cannot continue; what was saved is kept.
            Interrupted: by SIGINT or SIGTERM; a second one ends the process at once.
            Paused: `until` is reached.
        """
        with self._signals.handled():
            try:
                self.train()
                result = finish(self)
                for hook in self.hooks:
                    hook.after_run(self, result)
                return result
            except TooManySkipped as error:
                if distributed.is_rank_0():
                    skipped.extend(self.directory, error.entries)
                raise
            finally:
                for hook in self.hooks:
                    hook.close()

    def train(self) -> None:
        """Train until the budget is spent, and save. Raises as `run`."""
        for hook in self.hooks:
            hook.before_run(self)
        self._begin()
        if self.optimizer.total_steps is None:
            if self.parts.warm_up is not None and self.recipe.budget.steps != 0:
                self.parts.warm_up()
            with working(f"{self.recipe.arm}: measuring a step"):
                self.optimizer.total_steps = distributed.broadcast(
                    planned_steps(self.recipe, self.parts, self.optimizer)
                )
            if warning := few_steps(self.recipe, self.parts, self.optimizer.total_steps):
                warn(f"warning: {warning}")
        for hook in self.hooks:
            hook.before_training(self)
        self._signals.enter(Phase.TRAINING)
        with progress(f"{self.recipe.arm:>17}") as self._update:
            try:
                train(self.recipe, self.parts, self.optimizer, steps=self._steps(), after_step=self._after_step)
            except NonFinite as error:
                raise UserError(self._keep_failed_step(error)) from error
        self._signals.enter(Phase.SAVING)
        if (number := self._signals.from_any_process()) is not None:
            name = signal.Signals(number).name
            raise Interrupted(number, f"stopped by {name}; saved {self.save()}; {_GO_ON}")
        if not self.budget.spent:
            made, budget = bool(self.line), self.budget  # a run that goes on may be beyond `until` already
            pauses = made and self.recipe.budget.reached(budget.step, budget.seconds, budget.until)
            reached = budget.until if pauses else self._fraction  # else a hook has stopped it
            text = f"paused at {reached:.0%} of the budget; saved {self.save()}; {_GO_ON}"
            self._signals.enter(Phase.END)
            raise Paused(text)
        if self.budget.step:
            with working(f"{self.recipe.arm}: saving"):
                self.save()  # no training is lost if the evaluation fails
        for hook in self.hooks:
            hook.after_training(self)
        self._signals.enter(Phase.END)

    def passed(self, parts: int) -> bool:
        """Whether the last step has passed a boundary between this number of equal parts of the budget; not at its end."""
        # The last step of a budget in minutes may end before all of it is spent.
        if self.recipe.budget.reached(self.line["step"] + 1, self.budget.seconds):
            return False
        return int(parts * self._fraction_before) < int(parts * self._fraction)

    def evaluate(self) -> Json:
        """Evaluate along the run, and return the figures; a signal meanwhile ends the run after that."""
        self._signals.enter(Phase.EVALUATING)
        figures = self.parts.evaluate()
        self._signals.enter(Phase.TRAINING)
        return figures

    def save(self) -> Path:
        """Write a checkpoint of everything that the next step depends on, and the names of what was skipped until here."""
        groups, state = captured(self.parts, self.optimizer)
        state |= {"budget": self.budget.state_dict(), "totals": self.totals, "side": self.side}
        state["hooks"] = [hook.state_dict() for hook in self._own]
        root = self.directory / "checkpoints"
        saved = save_checkpoint(root, state["budget"]["step"], groups, state, keep=self.recipe.checkpoint.keep)
        if distributed.is_rank_0():
            skipped.write(self.directory, self.parts.skipped(state["stream"]))
        return saved

    def _load(self) -> None:
        groups, state = load_newest(self.directory / "checkpoints")
        restore(self.parts, self.optimizer, groups, state)
        self.budget.load_state_dict(state["budget"])
        self.totals, self.side = state["totals"], state["side"]
        self._fraction = self.recipe.budget.fraction(self.budget.step, self.budget.seconds)
        for hook, kept in zip(self._own, state.get("hooks", ()), strict=False):  # there may be fewer hooks now, or more
            hook.load_state_dict(kept)

    def _begin(self) -> None:
        """Prepare the files of a new or resumed run, only now that everything has loaded."""
        if not distributed.is_rank_0():
            return
        if self.resumed:
            for name in LOGS:
                cut(self.directory / name, self.budget.step)
            (self.directory / "result.json").unlink(missing_ok=True)  # it marks a run as finished
        save_recipe(self.recipe, self.directory / "recipe.yaml")

    def _steps(self) -> Iterator[int]:
        schedule = schedule_of(self.recipe, self.parts)
        for step in self.budget:
            self._before = StepSnapshot(self.parts, updates=schedule.updates(step))
            yield step

    def _after_step(self, record: StepRecord) -> None:
        with self.budget.paused():
            fraction = self.recipe.budget.fraction(record.step + 1, self.budget.seconds)
            self._fraction_before, self._fraction = self._fraction, fraction
            if self.recipe.budget.steps is None:  # total steps by the clock: every arm's schedule ends with its budget
                self.optimizer.total_steps = round((record.step + 1) / fraction)
            self.totals["read"] += record.units
            self.totals["meta_updates"] += bool(record.meta)
            for name, value in record.side.items():
                self.side[name] = self.side.get(name, 0.0) + value
            self.line = {"step": record.step, "seconds": round(self.budget.seconds, 4)}
            self.line |= {self.recipe.unit: self.totals["read"], "loss": record.loss}
            self.line |= {**record.optimizer, **record.side, **record.meta}
            self._show(record)
            for hook in self.hooks:
                hook.after_step(self, record)

    def _show(self, record: StepRecord) -> None:
        seconds, step = self.budget.seconds, record.step + 1
        left = self.recipe.budget.seconds_left(step, seconds)
        value = f"  value {record.meta['value']:+.3f}" if "value" in record.meta else ""
        self._update(seconds / max(1e-9, seconds + left), left, f"step {step}  loss {record.loss:.3f}{value}")

    def _keep_failed_step(self, error: NonFinite) -> str:
        """Save the failed step; return the message for the user."""
        step = self.budget.step
        text = f"{error.what} at step {step}; the learner was not updated: {error.remedy}"
        if self.parts.train is not None:
            return text
        try:
            kept = write_replay(self.recipe, self.parts, self.optimizer, self._before, step, error)
        except (OSError, UserError) as failed:
            return f"{text}; the step could not be kept ({failed})"
        return f"{text}; `vpretrain replay {kept}` makes the step again"

    def _interrupt(self, number: int) -> None:
        kept = "nothing was trained yet"  # how to go on depends on whether a comparison runs it
        if checkpoints(self.directory / "checkpoints"):
            kept = f"what was trained is saved; {_GO_ON}"
        raise Interrupted(number, f"stopped by {signal.Signals(number).name}; {kept}")
