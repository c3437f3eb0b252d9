"""Send a run's metrics to TensorBoard, Weights & Biases, MLflow and Trackio, besides metrics.jsonl and scores.jsonl.

This uses Accelerate's tracker classes without its Accelerator, which would fix device, precision and processes for the life of
the process. Their loggers need its PartialState, which takes over an existing process group.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vpretrain.config import Recipe, TrackingConfig
from vpretrain.console import warn
from vpretrain.errors import UserError
from vpretrain.files import read_json, write_json
from vpretrain.pretrained import first_line
from vpretrain.recipe import flat, secret
from vpretrain.types import Json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TENSORBOARD = "tensorboard"  # the default, and the name of its directory
KEPT = "trackers.json"  # by tracker: the id of the run there, and the first step that was not sent
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


def require(config: TrackingConfig) -> None:
    """Raise UserError for a tracker that is not installed, except TensorBoard, which is the default."""
    for name in config.trackers:
        if name != TENSORBOARD and not _installed(name):
            raise UserError(f'tracking.trackers: {name} is not installed: pip install "vpretrain[{name}]"')


class Trackers:
    """The recipe's trackers, open for one run. A tracker that fails is dropped with a warning; the run continues.

    Args:
        recipe: the run.
        step: where the run begins or resumes.
        resumed: whether it resumes, in the same run of each tracker; its logs are not yet cut to the step.
        main: whether this process does the tracking.

    Raises:
        UserError: a tracker other than TensorBoard does not start.
    """

    def __init__(self, recipe: Recipe, step: int, *, resumed: bool, main: bool = True) -> None:
        self._trackers: dict[str, GeneralTracker] = {}
        self._next: dict[str, int] = {}  # steps below it were sent
        self._recipe = recipe
        names = list(dict.fromkeys(recipe.tracking.trackers)) if main else []
        if TENSORBOARD in names and not _installed(TENSORBOARD):
            names.remove(TENSORBOARD)
            warn("no curves for TensorBoard: pip install tensorboard, or set tracking.trackers=[]")
        if not names:
            return
        from accelerate import PartialState

        PartialState()
        kept = _read(recipe.directory / KEPT) if resumed else {}
        log = recipe.directory / "metrics.jsonl"  # one line per step
        logged = log.read_bytes().count(b"\n") if resumed and log.exists() else 0
        for name in names:
            before = kept.get(name)
            self._next[name] = step if before is None else max(logged, before["next"])
            self._start(name, None if before is None else before["id"], step)
        kept |= {name: {"id": _id(name, tracker), "next": self._next[name]} for name, tracker in self._trackers.items()}
        kept.pop(TENSORBOARD, None)
        if kept:
            write_json(recipe.directory / KEPT, kept)

    def log(self, kind: str, figures: Json, step: int) -> None:
        """Send the numbers among `figures` to all trackers, as KIND/NAME."""
        values = {f"{kind}/{k}": v for k, v in figures.items() if isinstance(v, int | float) and k != "step"}
        for name in [name for name in self._trackers if step >= self._next[name]]:
            try:
                self._trackers[name].log(values, step=step)
            except Exception as error:  # any failure of a network, a disk or a server
                self._leave(name, error)

    def notify(self, text: str, level: Literal["INFO", "WARN"]) -> None:
        """Send a notification by the trackers that have them: W&B and Trackio, which deliver it as the user has set there."""
        title = "/".join(self._recipe.directory.parts[-2:])
        for name, tracker in list(self._trackers.items()):
            try:
                if (alert := getattr(tracker.tracker, "alert", None)) is not None:
                    levels = importlib.import_module(name).AlertLevel  # their defaults differ
                    alert(title=title, text=text, level=levels[level])
            except Exception as error:  # as in `log`
                self._leave(name, error)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        for name in list(self._trackers):
            try:
                self._trackers[name].finish()
            except Exception as error:
                self._leave(name, error)

    def _start(self, name: str, run: str | None, step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for key, value in _NO_TELEMETRY.items():
            os.environ.setdefault(key, value)
        goes_on = run is not None or (name == TENSORBOARD and (self._recipe.directory / TENSORBOARD).exists())
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](**_options(name, self._recipe, run, step))
            tracker.main_process_only = False  # who tracks is decided here
            tracker.start()
            if not goes_on:
                tracker.store_init_configuration(_settings(self._recipe))
            self._trackers[name] = tracker
        except Exception as error:
            if name != TENSORBOARD:
                raise UserError(
                    f"the tracker {name} does not start: {first_line(error)}; mend it, or leave it out of tracking.trackers"
                ) from error
            self._leave(name, error)

    def _leave(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        warn(
            f"warning: the tracker {name} failed ({first_line(error)}); the run goes on without it, and metrics.jsonl "
            "has everything"
        )


def _options(name: str, recipe: Recipe, run: str | None, step: int) -> Json:
    """Return the arguments of a tracker's class; `run` is the id of a run that resumes at `step`."""
    project, title = recipe.tracking.project, "/".join(recipe.directory.parts[-2:])
    match name:
        case "tensorboard":
            return {"run_name": TENSORBOARD, "logging_dir": recipe.directory, "purge_step": step}
        case "wandb":
            return {"run_name": project, "name": title, "id": run, "resume": "allow"}
        case "mlflow":
            return {"experiment_name": project, "run_name": title, "run_id": run}
        case _:
            # Trackio finds runs by name, and a resumed run takes the settings passed then (0.43).
            title = run or f"{title}-{secrets.token_hex(3)}"
            return {"run_name": project, "name": title, "resume": "allow", "config": _settings(recipe)}


def _id(name: str, tracker: GeneralTracker) -> str:
    """Return the id by which the tracker's run is found again."""
    match name:
        case "wandb":
            return str(tracker.tracker.id)
        case "mlflow":
            return str(tracker.tracker.info.run_id)
        case _:
            return str(getattr(tracker.tracker, "name", ""))


def _settings(recipe: Recipe) -> Json:
    """Return the recipe's settings by name for trackers, without anything that looks like a password or token."""
    settings = flat(recipe.model_dump(mode="json"))
    return {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in settings.items()
        if not secret(str(value))
    }


def _read(file: Path) -> Json:
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError):
        return {}


def _installed(name: str) -> bool:
    """Whether a package is installed; a mere folder of that name, such as wandb makes for its runs, is not one."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None
