"""One run: an arm under its budget, with its log, its checkpoints, its evaluation and its exported model.

A run directory holds recipe.yaml, metrics.jsonl (a line a step), scores.jsonl (a line an evaluation along the run),
views.jsonl (vision: what the designer makes of a few pictures, now and then), checkpoints/, model/ with its card,
provenance.json (data and versions), result.json, and what trackers keep there. Several processes train and evaluate together;
the one that leads decides and writes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from vpretrain import distributed
from vpretrain.config import Recipe
from vpretrain.console import console, progress
from vpretrain.errors import Elsewhere, Interrupted, NonFinite, Paused, UserError
from vpretrain.files import remove, whole_directory, write_whole
from vpretrain.method.algorithm import StepRecord
from vpretrain.method.step import learner_losses
from vpretrain.recipe import refuse_changes, save_recipe
from vpretrain.run.budget import Budget
from vpretrain.run.card import provenance, write_card
from vpretrain.run.checkpoint import checkpoints, load_newest, save_checkpoint
from vpretrain.run.export import export_checkpoint
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.run.replay import write_replay
from vpretrain.run.state import Before, captured, restore
from vpretrain.run.tracking import KEPT, TENSORBOARD, Trackers, require
from vpretrain.run.train import train
from vpretrain.timing import now

_LOGS = ("metrics.jsonl", "scores.jsonl", "views.jsonl")  # every line has its step
_LOOKS = 5  # equal shares of the budget, after which the designer is looked at; and before the first step
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # torch's words, on GPU and CPU
_MAY_CHANGE = {"budget", "checkpoint", "output", "name", "threads", "tracking"}  # what a resumed run may set anew


class Session:
    """Runs one recipe in its directory, which `prepare_directory` has made.

    Args:
        recipe: the run.
        parts: its parts.
        resume: go on from the newest checkpoint.
        until: the share of the budget at which to save and leave the rest for later.
    """

    def __init__(self, recipe: Recipe, parts: Parts, *, resume: bool = False, until: float = 1.0) -> None:
        self.recipe, self.parts = recipe, parts
        self.directory = recipe.directory
        self.budget = Budget(recipe.budget, until=until)
        self.optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer)
        self.totals: dict[str, float] = {"read": 0, "meta_updates": 0}
        self.side: dict[str, float] = {}  # sums over steps of the tasks' scalar side information
        self._saved_at = self._share = 0.0
        self._signal: int | None = None
        self._phase = "start"  # then training, saving, and the end
        self._resumed = resume
        if resume:
            self._load()
        elif distributed.rank():
            torch.manual_seed(recipe.seed + 1_000_003 * distributed.rank())  # dropout of its own

    def run(self) -> dict[str, Any]:
        """Train until the budget is spent, evaluate, export; returns and writes result.json.

        Raises:
            UserError: something cannot go on; what was saved stays.
            Interrupted: by SIGINT or SIGTERM; a second one ends the process at once.
            Paused: the share of the budget is reached.
        """
        with self._signals(), contextlib.closing(self._open_trackers()) as self._trackers:
            self._begin()
            if self.optimizer.horizon is None:
                if self.parts.warm_up is not None and self.recipe.budget.steps != 0:
                    self.parts.warm_up()
                with console.status(f"{self.recipe.arm}: measuring a step"):
                    self.optimizer.horizon = distributed.broadcast(self._horizon())
            if not self._resumed:
                self._look(-1)
            self._phase = "training"
            self._train()
            self._phase = "saving"
            self._signal = next((number for number in distributed.all_gather(self._signal) if number is not None), None)
            if self._signal is not None:
                name = signal.Signals(self._signal).name
                raise Interrupted(self._signal, f"stopped by {name}; saved {self.save()}; continue with --resume")
            if not self.budget.spent:
                text = f"paused at {self.budget.until:.0%} of the budget; saved {self.save()}; continue with --resume"
                if self._signal is not None:
                    self._interrupt()
                raise Paused(text)
            if self.budget.step:
                with console.status(f"{self.recipe.arm}: saving"):
                    self.save()  # whatever befalls the evaluation, no training is lost
                self._look(self.budget.step - 1)
            self._phase = "end"
            if self._signal is not None:
                self._interrupt()
            return self._finish()

    def _train(self) -> None:
        recipe, parts = self.recipe, self.parts
        with progress(f"{recipe.arm:>17}") as self._update, self._log() as self._log_file:
            try:
                train(recipe, parts, self.optimizer, steps=self._steps(), after_step=self._after_step)
            except NonFinite as error:
                raise UserError(self._keep_failed_step(error)) from error

    def _steps(self) -> Iterator[int]:
        for step in self.budget:
            self._before = Before(self.parts)
            yield step

    def _keep_failed_step(self, error: NonFinite) -> str:
        """Returns what the user is told."""
        step = self.budget.step
        text = f"{error.what} at step {step}; the learner was not updated: {error.remedy}"
        if self.parts.train is not None:
            return text
        try:
            kept = write_replay(self.recipe, self.parts, self.optimizer, self._before, step, error)
        except (OSError, UserError) as failed:
            return f"{text}; the step could not be kept ({failed})"
        return f"{text}; `vpretrain replay {kept}` makes the step again"

    def save(self) -> Path:
        """Write a checkpoint of everything that the next step depends on."""
        groups, state = captured(self.parts, self.optimizer)
        state |= {"budget": self.budget.state_dict(), "totals": self.totals, "side": self.side}
        self._saved_at = self.budget.seconds
        root = self.directory / "checkpoints"
        return save_checkpoint(root, state["budget"]["step"], groups, state, keep=self.recipe.checkpoint.keep)

    def _load(self) -> None:
        groups, state = load_newest(self.directory / "checkpoints")
        restore(self.parts, self.optimizer, groups, state)
        self.budget.load_state_dict(state["budget"])
        self.totals, self.side = state["totals"], state["side"]
        self._saved_at, self._share = self.budget.seconds, self.budget.share(self.budget.step)

    def _open_trackers(self) -> Trackers:
        return Trackers(self.recipe, self.budget.step, resumed=self._resumed, main=distributed.is_rank_0())

    def _begin(self) -> None:
        """The directory as the run begins, or goes on: only now that everything has been found to fit."""
        if not distributed.is_rank_0():
            return
        if self._resumed:
            for name in _LOGS:
                _cut(self.directory / name, self.budget.step)
            (self.directory / "result.json").unlink(missing_ok=True)  # what says that a run is finished
        save_recipe(self.recipe, self.directory / "recipe.yaml")

    def _after_step(self, record: StepRecord) -> None:
        with self.budget.paused():
            points, before = self.recipe.evaluation.points, self._share
            self._share = self.budget.share(record.step + 1)
            if self.recipe.budget.steps is None:  # by the clock, so that every arm's schedule ends with its budget
                self.optimizer.horizon = round((record.step + 1) / self._share)
            self.totals["read"] += record.tokens
            self.totals["meta_updates"] += bool(record.meta)
            for name, value in record.side.items():
                self.side[name] = self.side.get(name, 0.0) + value
            line = {
                "step": record.step,
                "seconds": round(self.budget.seconds, 4),
                self.recipe.unit: self.totals["read"],
                "loss": record.loss,
                **record.optimizer,
                **record.side,
                **record.meta,
            }
            self._log_file.write(json.dumps(line) + "\n")
            self._log_file.flush()
            self._trackers.log("train", line, record.step)
            left = self.budget.seconds_left(record.step + 1)
            note = f"step {record.step + 1}  loss {record.loss:.3f}" + (
                f"  value {record.meta['value']:+.3f}" if "value" in record.meta else ""
            )
            self._update(self.budget.seconds / max(1e-9, self.budget.seconds + left), left, note)
            if int(points * before) < int(points * self._share) and self._share < 1:  # the last one is the result's
                self._score(record.step)
            if int(_LOOKS * before) < int(_LOOKS * self._share) and self._share < 1:
                self._look(record.step)
            if self._due(record.step + 1):
                self.save()

    def _score(self, step: int) -> None:
        """Evaluate along the way; the run goes on as if nothing had happened."""
        line = {"step": step, "seconds": self.budget.seconds, self.recipe.unit: self.totals["read"]}
        line |= self._aside("scores.jsonl", line, self.parts.evaluate)
        self._trackers.log("evaluation", line, step)

    def _look(self, step: int) -> None:
        """Record what the designer does; -1 is before the first step."""
        if self.parts.look is not None:
            self._aside("views.jsonl", {"step": step, "seconds": self.budget.seconds}, self.parts.look)

    def _aside(self, log: str, line: dict[str, Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Write a line, with what is found, that no later step depends on; returns what was found."""
        random = random_state()
        found = find()
        if distributed.is_rank_0():
            with (self.directory / log).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | found) + "\n")
        set_random_state(random)
        return found

    def _due(self, steps_done: int) -> bool:
        every = self.recipe.checkpoint
        return (every.every_steps is not None and steps_done % every.every_steps == 0) or (
            every.every_minutes is not None and self.budget.seconds - self._saved_at >= 60 * every.every_minutes
        )

    def _finish(self) -> dict[str, Any]:
        steps, seconds, unit = self.budget.step, self.budget.seconds, self.recipe.unit
        result: dict[str, Any] = {
            "name": self.recipe.name,
            "arm": self.recipe.arm,
            "seed": self.recipe.seed,
            "steps": steps,
            "processes": distributed.size(),
            unit: self.totals["read"],
            "seconds": seconds,
            f"{unit}_per_s": self.totals["read"] / seconds if seconds else None,
            "peak_memory_bytes": peak_memory_bytes(),
            "horizon": self.optimizer.horizon,
            "meta_updates": self.totals["meta_updates"],
            **{f"mean_{name.split('_')[0]}": total / steps for name, total in self.side.items()},
        }
        if steps and (warning := self.parts.warning(result)):
            result["warning"] = warning
            console.print(f"warning: {warning}", style="yellow")
        if steps:
            with console.status(f"{self.recipe.arm}: exporting the model"):
                sharded = self.recipe.parallel == "fsdp" and distributed.size() > 1
                distributed.on_rank_0(partial(self._export, sharded))
        result |= self.parts.evaluate()
        distributed.on_rank_0(partial(self._write_result, result))
        return result

    def _write_result(self, result: dict[str, Any]) -> None:
        if result["steps"]:
            with console.status(f"{self.recipe.arm}: hashing the data"):
                write_whole(self.directory / "provenance.json", json.dumps(provenance(self.recipe), indent=1))
            write_card(self.directory, self.directory / "model", result=result)
        write_whole(self.directory / "result.json", json.dumps(result, indent=1))
        self._trackers.log("evaluation", result, result["steps"])

    def _export(self, sharded: bool) -> None:
        with whole_directory(self.directory / "model") as model:
            if sharded:  # gathered from the checkpoint that was just written
                export_checkpoint(self.recipe, self.directory / "checkpoints", model)
            else:
                self.parts.export(model)
        if self.parts.illustrate is not None:
            self.parts.illustrate(self.directory)

    def _horizon(self) -> int:
        """Steps of the schedule: the budget's, or as many as its minutes hold at the pace of a rehearsed step."""
        if self.recipe.budget.steps is not None:
            return max(1, self.recipe.budget.steps)
        assert self.recipe.budget.minutes is not None
        return max(1, round(60 * self.recipe.budget.minutes / self._rehearse()))

    def _rehearse(self) -> float:
        """Seconds of a step with its share of a meta update, measured without changing anything.

        The optimizers' own time is not in it. The first pass only warms up allocators and caches.
        """
        parts, seconds = self.parts, 0.0
        cursors = parts.stream.state_dict(), parts.feedback.state_dict()
        stateful: list[Any] = [*parts.modules.values(), *parts.optimizers.values()]
        kept = [copy.deepcopy(part.state_dict()) for part in stateful]
        random = random_state()
        for _ in range(2):
            start = now()
            batches = parts.stream.next()
            with contextlib.nullcontext() if parts.meta is None else parts.meta.rehearsal(batches):
                # As if each update had feedback of its own.
                seconds = (now() - start) / self.recipe.value.every_steps
                start = now()
                for part in learner_losses(parts.learner, parts.construction, batches[:1]):
                    part.loss.backward()
                seconds += (now() - start) * len(batches)
            self.optimizer.torch.zero_grad(set_to_none=True)
        parts.stream.load_state_dict(cursors[0])
        parts.feedback.load_state_dict(cursors[1])
        for part, state_dict in zip(stateful, kept, strict=True):
            part.load_state_dict(state_dict)
        set_random_state(random)
        return seconds

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM: training ends after the present step, with a checkpoint; what can be made anew ends at once."""

        def stop(number: int, frame: Any) -> None:
            if self._signal is not None:
                sys.exit(128 + number)
            self._signal = number
            if self._phase == "training":
                self.budget.stop()
                console.print("stopping after this step; once more to leave without saving", style="yellow")
            elif self._phase != "saving":
                self._interrupt()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self) -> None:
        assert self._signal is not None
        trained = bool(checkpoints(self.directory / "checkpoints"))
        how = (
            "what was trained is saved; continue with --resume"
            if trained
            else "nothing was trained yet; start it again"
        )
        raise Interrupted(self._signal, f"stopped by {signal.Signals(self._signal).name}; {how}")

    def _log(self) -> Any:
        path = self.directory / "metrics.jsonl" if distributed.is_rank_0() else Path(os.devnull)
        return path.open("a", encoding="utf-8")


@contextlib.contextmanager
def told(recipe: Recipe) -> Iterator[None]:
    """What disk or memory refuse, in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot go on in {recipe.directory}: {error}; mend that (make room, if the disk is full), then --resume"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if distributed.size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise Elsewhere("another process has ended: see what it says, then continue with --resume") from error
        if not any(words in str(error) for words in _OUT_OF_MEMORY) and not isinstance(error, MemoryError):
            raise
        raise UserError(f"out of memory: {recipe.memory_knobs}; then start anew, or --resume") from error


def _cut(log: Path, step: int) -> None:
    """Leave out lines of steps after the checkpoint, which are written anew, and a line that was never finished."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    write_whole(log, "".join(line + "\n" for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def prepare_directory(recipe: Recipe, *, resume: bool, overwrite: bool, accept_changes: bool = False) -> None:
    """Make the run's directory, or refuse it before any long work. Raises UserError."""
    require(recipe.tracking)
    directory = recipe.directory
    saved = checkpoints(directory / "checkpoints")
    if (saved or (directory / "result.json").exists()) and not resume and not overwrite:
        raise UserError(
            f"{directory} holds a run already: add --resume to continue it, --overwrite to start anew, or name=..."
        )
    if resume:
        if not saved:
            raise UserError(f"{directory} has no checkpoint to resume from: start it without --resume")
        if not accept_changes:
            refuse_changes(recipe, directory / "recipe.yaml", except_for=_MAY_CHANGE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not resume:  # also what a run left that ended before its first checkpoint
            for name in ("checkpoints", "model", "replay", TENSORBOARD):
                remove(directory / name)
            for name in (*_LOGS, "result.json", "provenance.json", "recipe.yaml", KEPT):
                (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; change `output`") from None


def peak_memory_bytes() -> int:
    """Peak of this process: device memory on CUDA, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
