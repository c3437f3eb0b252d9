"""`vpretrain sweep`: search for settings with Optuna, under a fixed budget per trial.

Each trial is a run in its own directory. It pauses at equal fractions of its budget (rungs), and continues or not according to
its score. With a learning rate that is constant after warm-up a score half-way is that of a run of half the budget; with one
that falls, trials are compared at the same place of their schedules.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from pathlib import Path

from pydantic import TypeAdapter, ValidationError, model_validator
from rich.markup import escape
from rich.table import Table

from vpretrain.compare.runs import prepare_group, run_member
from vpretrain.compare.study import write_study
from vpretrain.config import Recipe, Strict
from vpretrain.console import minutes, note
from vpretrain.errors import MachineError, UserError
from vpretrain.files import read_json, read_lines, write_whole
from vpretrain.modality import modality_of
from vpretrain.plain import read_yaml
from vpretrain.plot import pyplot, save_figure
from vpretrain.recipe import parse_recipe, save_recipe, with_overrides
from vpretrain.run.lock import locked
from vpretrain.types import Json

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    raise UserError('sweeps need a package: pip install "vpretrain[sweep]"') from None

optuna.logging.set_verbosity(optuna.logging.WARNING)

_UNPRUNED = 5  # trials before any can be pruned, and before importances mean anything
_LATE = 0.1  # fraction of a rung by which the run pauses after a score, so that the score exists


class Dimension(Strict):
    """The values of one setting: `choices`, or numbers from `low` to `high` (whole if both are), on a `log` scale or not."""

    choices: tuple[str | int | float | bool | None, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        low, high = self.low, self.high
        if (low is not None and high is not None) == (self.choices is not None) or (low is None) != (high is None):
            raise ValueError("give either choices, or low and high")
        if self.choices is not None and len(set(self.choices)) < 2:
            raise ValueError("choices must be two or more")
        if low is not None and high is not None and not (low < high and (low > 0 or not self.log)):
            raise ValueError("low must be below high, and above 0 on a log scale")
        return self

    def suggest(self, trial: optuna.Trial, field: str) -> str | int | float | bool | None:
        """Return a value for a trial."""
        if self.choices is not None:
            return trial.suggest_categorical(field, self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(field, self.low, self.high, log=self.log)
        return trial.suggest_float(field, self.low, self.high, log=self.log)


def load_space(path: str | Path) -> dict[str, Dimension]:
    """Read a space: dotted names of settings, each with its values. Raises UserError if it is missing or invalid."""
    try:
        data = read_yaml(Path(path).read_bytes(), str(path))
        space = TypeAdapter(dict[str, Dimension]).validate_python(data)
    except OSError as error:
        raise UserError(f"cannot read the space {path}: {error.strerror}; recipes/sweeps/ holds ready ones") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    if not space:
        raise UserError(
            f"{path} names no setting: write for instance optimizer.lr: {{low: 1.0e-6, high: 1.0e-4, log: true}}"
        )
    return space


def sweep(
    recipe: Recipe,
    space: dict[str, Dimension],
    *,
    trials: int,
    rungs: int = 3,
    objective: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Json:
    """Search, one trial after the other; return and write sweep.json, and write the best recipe as best.yaml.

    Trial n is proposed by a sampler (TPE) of seed `recipe.seed + n` from the trials before it, so that an interrupted sweep
    resumes exactly. After the first five, a trial is pruned if its score at a rung is worse than the median there.

    Args:
        recipe: the recipe that all trials share, budget included. Settings are chosen on its evaluation: give it problems that
            no results are reported on.
        space: the settings to search, and their values.
        trials: their total number.
        rungs: number of points in the budget at which a trial's score is checked, its end included.
        objective: a metric of the evaluation; None: the modality's first.
        resume: continue with the missing trials.
        overwrite: delete an earlier sweep of this name.

    Raises:
        UserError: a setting does not exist, the directory is taken or of another objective, or no trial of the first five could
            run.
        Interrupted: a signal stopped it, after the current trial had saved its state.
    """
    objectives = modality_of(recipe).metrics.objectives
    if objective is not None and objective not in objectives:
        raise UserError(f"unknown objective {objective}: choose from {', '.join(objectives)}")
    key = objective or next(iter(objectives))
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"points": rungs})})
    for field, dimension in space.items():
        _refuse_unusable(recipe, field, dimension)
    with locked(recipe.directory):
        prepare_group(recipe, resume=resume, overwrite=overwrite)
        _keep_space(recipe.directory / "space.json", space)
        study = optuna.create_study(
            study_name=recipe.name,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(recipe.directory / "study.journal"))),
            direction="maximize" if objectives[key][0] > 0 else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
            load_if_exists=True,
        )
        _keep_objective(study, key, recipe.directory)
        finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        start = time.monotonic()
        for number in range(trials):
            outcome = _trial(study, recipe, space, number, key=key, rungs=rungs)
            made = number + 1 - finished
            left = (time.monotonic() - start) / made * (trials - number - 1) if made > 0 else None
            note(f"trial {number}: {outcome}" + ("" if left is None else f"; {minutes(left)} left"))
            if number + 1 == _UNPRUNED and not _completed(study):
                raise UserError(f"none of the first {_UNPRUNED} trials came to its end; the last one: {outcome}")
        return write_study(recipe, "sweep.json", _results(study, recipe, space, key))


def sweep_table(results: Json) -> Table:
    """Return the trials as a table for a terminal, best first."""
    view = Table(title=f"{results['objective']} ({results['direction']}), {len(results['trials'])} trials")
    for column in ("trial", results["objective"], "state", *results["space"]):
        view.add_column(column, justify="left" if column == "state" else "right")
    sign = 1 if results["direction"] == "minimize" else -1
    ranked = sorted(results["trials"], key=lambda t: math.inf if t["value"] is None else sign * t["value"])
    for trial in ranked:
        value = "-" if trial["value"] is None else f"{trial['value']:.4f}"
        settings = (_shown(trial["settings"].get(field)) for field in results["space"])
        view.add_row(str(trial["number"]), value, trial["state"], *map(escape, settings))
    return view


def draw_sweep(results: Json, file: Path) -> Path:
    """Plot the objective by trial, and by each setting, most important first."""
    done = [trial for trial in results["trials"] if trial["value"] is not None]
    fields = sorted(results["space"], key=lambda field: -results["importances"].get(field, 0.0))
    count = 1 + len(fields)
    figure, axes = pyplot().subplots(1, count, figsize=(3.2 * count, 3.4), layout="constrained", sharey=True)
    axes[0].plot([trial["number"] for trial in done], [trial["value"] for trial in done], "o", markersize=4)
    best = next(trial for trial in done if trial["number"] == results["best"])
    axes[0].set(xlabel="trial", ylabel=f"{results['objective']} ({results['direction']})")
    for axis, field in zip(axes[1:], fields, strict=True):
        values = [trial["settings"][field] for trial in done]
        if results["space"][field]["choices"] is not None:  # in the order of the space
            names = [_shown(choice) for choice in results["space"][field]["choices"]]
            values = [names.index(_shown(value)) for value in values]
            axis.set_xticks(range(len(names)), names)
        elif results["space"][field]["log"]:
            axis.set_xscale("log")
        axis.plot(values, [trial["value"] for trial in done], "o", markersize=4)
        axis.plot([values[done.index(best)]], [best["value"]], "*", color="C3", markersize=11, label="best")
        importance = results["importances"].get(field)
        axis.set_title("" if importance is None else f"importance {importance:.0%}", fontsize=9)
        axis.set_xlabel(field)
    axes[-1].legend(fontsize=8)
    return save_figure(figure, file)


def _refuse_unusable(recipe: Recipe, field: str, dimension: Dimension) -> None:
    """Raise UserError if the recipe accepts none of a setting's values: its name or its unit is wrong."""
    error = None
    for value in dimension.choices or (dimension.low, dimension.high):
        try:
            _with(recipe, {field: value})
            return
        except UserError as refused:
            error = refused
    raise UserError(f"space: {error}")


def _keep_space(file: Path, space: dict[str, Dimension]) -> None:
    """Save the space. Raises UserError if the sweep began with another: their trials could not be told apart."""
    text = json.dumps({field: dimension.model_dump(mode="json") for field, dimension in space.items()}, indent=1)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UserError(f"{file.parent} was begun with another space: go on with that one, or --overwrite")
    write_whole(file, text)


def _keep_objective(study: optuna.Study, key: str, directory: Path) -> None:
    """Save the objective. Raises UserError if the sweep began with another: the values of its trials would be of both."""
    before = study.user_attrs.get("objective")
    if before is None:
        study.set_user_attr("objective", key)
    elif before != key:
        raise UserError(f"{directory} was begun with another objective, {before}: go on with that one, or --overwrite")


def _trial(
    study: optuna.Study, recipe: Recipe, space: dict[str, Dimension], number: int, *, key: str, rungs: int
) -> str:
    """Finish one trial, from wherever it stands; return its outcome as text."""
    known = study.get_trials(deepcopy=False)
    if number < len(known) and known[number].state.is_finished():
        return "finished already"
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + number)
    trial = study.ask() if number == len(known) else optuna.Trial(study, known[number]._trial_id)
    chosen = {field: dimension.suggest(trial, field) for field, dimension in space.items()}
    directory = recipe.directory / f"trial-{number}"
    settings = " ".join(f"{field}={_shown(value)}" for field, value in chosen.items())
    try:
        _with(recipe, chosen)
    except UserError as error:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"{settings}: {error}"
    seen = len(study.get_trials(deepcopy=False)[number].intermediate_values)
    for rung in range(seen + 1, rungs + 1):
        until = 1.0 if rung == rungs else (rung + _LATE) / rungs
        try:
            if (directory / "result.json").exists() or run_member(
                recipe.directory, directory.name, _settings(chosen), until=until, resume=True
            ):
                break
        except MachineError:  # no fault of these settings: with --resume the trial goes on
            raise
        except UserError as error:  # its own message is printed above: out of memory, a NaN or infinite loss ...
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return f"{settings}: {error}"
        scores = read_lines(directory / "scores.jsonl")
        if len(scores) < rung:  # so few steps that the scored one is still to come
            continue
        if scores[rung - 1][key] is None:
            raise UserError(f"the evaluation does not measure {key}: choose another --objective")
        trial.report(scores[rung - 1][key], rung)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
            return f"{settings}: left off at rung {rung} with {key} {scores[rung - 1][key]:.4f}"
    value = read_json(directory / "result.json")[key]
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    if value is None or not math.isfinite(value):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"{settings}: {key} is {value}"
    study.tell(trial, value)
    for other in _completed(study):  # keep the best trial's model only
        if other.number != study.best_trial.number:
            shutil.rmtree(recipe.directory / f"trial-{other.number}" / "model", ignore_errors=True)
    return f"{settings}: {key} {value:.4f} (best: {study.best_value:.4f}, trial {study.best_trial.number})"


def _results(study: optuna.Study, recipe: Recipe, space: dict[str, Dimension], key: str) -> Json:
    if not _completed(study):
        raise UserError("no trial came to its end; see the lines above")
    best = study.best_trial
    chosen = _with(recipe, best.params).model_copy(update={"name": f"{recipe.name}-best"})
    save_recipe(chosen, recipe.directory / "best.yaml")
    return {
        "objective": key,
        "direction": study.direction.name.lower(),
        "best": best.number,
        "importances": _importances(study),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "settings": trial.params,
                "rungs": {str(rung): value for rung, value in trial.intermediate_values.items()},
            }
            for trial in study.get_trials(deepcopy=False)
        ],
        "space": {field: dimension.model_dump(mode="json") for field, dimension in space.items()},
    }


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return the settings' importances for the objective (PED-ANOVA); empty if trials are few or equally good."""
    if len(_completed(study)) < _UNPRUNED:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return optuna.importance.get_param_importances(study)
        except UserWarning:
            return {}


def _completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def _with(recipe: Recipe, chosen: Json) -> Recipe:
    return parse_recipe(with_overrides(recipe.model_dump(mode="json"), _settings(chosen)))


def _settings(chosen: Json) -> list[str]:
    return [f"{field}={json.dumps(value)}" for field, value in chosen.items()]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
