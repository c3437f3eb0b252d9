"""`vpretrain posttrain`: paths of several trainings, one after the other, under one budget (the paper's Fig 2).

A path such as v+grpo is V-pretraining for the first half of the budget, and GRPO from there for the second. All the work of a
path is charged to it, including GRPO's attempts, so that scores can be compared by seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from rich.table import Table

from vpretrain.compare.entry import check_entries, parse_entry
from vpretrain.compare.results import START, over_seeds, values_of
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.compare.study import run_study, write_study
from vpretrain.compare.tables import interval, of_seeds, signed
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.modality import modality_of
from vpretrain.plain import quoted
from vpretrain.plot import name_lines, pyplot, save_figure
from vpretrain.tables import grid
from vpretrain.types import Json

_HOUR = 3600  # seconds


def posttrain(
    recipe: Recipe, paths: Sequence[str], *, seeds: Sequence[int] = (), resume: bool = False, overwrite: bool = False
) -> Json:
    """Run the untouched learner and every path with every seed; return and write posttrain.json.

    Args:
        recipe: the recipe that all share; its budget is that of a whole path, in equal parts for its stages.
        paths: arms joined by +, with or without settings of their own.
        seeds: none: the recipe's own.
        resume, overwrite: as in `compare`.

    Raises:
        UserError: an unknown arm, a setting that does not fit, fewer steps than stages, an evaluation that measures nothing, or
            as `run_group` raises it.
        Interrupted: a signal stopped it, after the current stage had saved its state.
    """
    check_entries(recipe, [stage for path in paths for stage in path.split("+")])
    most, steps = max(len(path.split("+")) for path in paths), recipe.budget.steps
    if steps is not None and steps < most:
        raise UserError(f"budget.steps={steps} leaves one of {most} stages without a step: give at least {most}")
    paths, seeds = list(dict.fromkeys(paths)), list(dict.fromkeys(seeds)) or [recipe.seed]
    stages = {path: [_stages(recipe, path, seed) for seed in seeds] for path in paths}  # path -> seed -> its runs
    members: dict[str, list[str]] = {}
    for of_seed in zip(*stages.values(), strict=True):
        for own in of_seed:
            members |= own
    start = run_study(recipe, {}, resume=resume, overwrite=overwrite)[START]
    metrics = modality_of(recipe).metrics
    measured = [key for key in metrics.paired if any(key in case for case in start[metrics.cases])]
    if not measured:
        raise UserError("the evaluation measures nothing by which paths can be compared: give it such data")
    key, *beside = measured
    results = run_study(recipe, members, resume=True)
    lines = {path: [_line(recipe, start, runs, results) for runs in of_path] for path, of_path in stages.items()}
    ends = {path: [results[list(runs)[-1]] for runs in of_path] for path, of_path in stages.items()}
    cases = {path: [run[metrics.cases] for run in runs] for path, runs in ends.items()}

    def minus_others(path: str, key: str) -> dict[str, dict[str, float]]:
        own = values_of(cases[path], key)
        return {other: paired_difference(own, values_of(cases[other], key)) for other in paths if other != path}

    summary: Json = {
        START: {k: v for k, v in start.items() if k != metrics.cases},
        "paths": {
            path: {
                "end": over_seeds(runs, metrics),  # of the last stage alone, seconds and the like included
                "seconds": mean(line[-1]["seconds"] for line in lines[path]),
                recipe.unit: mean(line[-1][recipe.unit] for line in lines[path]),
                "curve": lines[path],
                "minus": minus_others(path, key),
                "minus_beside": {other: minus_others(path, other) for other in beside},
            }
            for path, runs in ends.items()
        },
        "of": metrics.paired[key].unit,
        "seeds": seeds,
    }
    first, *others = paths
    correct(summary["paths"][path]["minus"][first] for path in others)  # those that the table shows
    correct(summary["paths"][path]["minus_beside"][other][first] for path in others for other in beside)
    return write_study(recipe, "posttrain.json", summary)


def posttrain_table(results: Json, recipe: Recipe) -> Table:
    """Return the paths' final results, as means over seeds, as a table for a terminal."""
    metrics = modality_of(recipe).metrics
    first = next(iter(results["paths"]))
    rows = [["path", *metrics.columns, f"minus {first} [95 %]", "seconds", recipe.unit]]
    for path, found in {START: {"end": results[START]}, **results["paths"]}.items():
        minus = found.get("minus", {}).get(first)
        difference = "-"
        if minus is not None:
            mean, low, high = signed(minus)
            difference = f"{mean} [{low}, {high}], p = {minus['p_holm']:.2g}"
        spent = f"{found.get('seconds', 0.0):.1f}", f"{found.get(recipe.unit, 0):,.0f}"
        rows.append([path, *(show(found["end"]) for show in metrics.columns.values()), difference, *spent])
    over = f"{metrics.cases_in_words}{of_seeds(len(results['seeds']))}"
    return grid(f"{recipe.name}: paths of equal budget, paired over {over}", rows)


def posttrain_remarks(results: Json, recipe: Recipe) -> list[str]:
    """Return the paths' differences from the first in the other figures of a case, such as Pass@1."""
    metrics, (first, *others) = modality_of(recipe).metrics, results["paths"]
    found = [(path, key, minus) for path in others for key, minus in results["paths"][path]["minus_beside"].items()]
    return [
        f"{path} minus {first} on {metrics.paired[key].measured_on}: {interval(minus[first], metrics.paired[key].unit)}"
        for path, key, minus in found
    ]


def draw_posttrain(results: Json, recipe: Recipe) -> Path:
    """Plot scores against the time on one device; a dot ends a stage, a thin line is a seed."""
    scores = [
        (key, title)
        for key, (_, title) in modality_of(recipe).metrics.scores.items()
        if results[START].get(key) is not None
    ]
    longest = max(curve[-1]["seconds"] for found in results["paths"].values() for curve in found["curve"])
    unit, scale = ("hours", _HOUR) if longest >= _HOUR else ("seconds", 1)
    count = len(scores)
    figure, axes = pyplot().subplots(1, count, figsize=(5.2 * count, 3.8), layout="constrained", squeeze=False)
    for axis, (key, title) in zip(axes[0], scores, strict=True):
        for number, (path, found) in enumerate(results["paths"].items()):
            for turn, curve in enumerate(found["curve"]):
                label, colour = (path if turn == 0 else None), f"C{number % 10}"
                x, y = [point["seconds"] / scale for point in curve], [point[key] for point in curve]
                axis.plot(x, y, label=label, color=colour, linewidth=1.5 if turn == 0 else 0.7)
                ended = [n for n, point in enumerate(curve) if point["ends"]]
                axis.plot([x[n] for n in ended], [y[n] for n in ended], "o", color=colour, markersize=4)
        axis.set(title=title, xlabel=f"{unit} on one device, attempts included")
    name_lines(figure)
    return save_figure(figure, recipe.directory / "posttrain.png")


def _stages(recipe: Recipe, path: str, seed: int) -> dict[str, list[str]]:
    """Return the runs of a path: name -> settings. Paths that begin alike share their first runs."""
    entries = [parse_entry(stage) for stage in path.split("+")]
    minutes, steps, many = recipe.budget.minutes, recipe.budget.steps, len(entries)
    shares = [] if minutes is None else [f"budget.minutes={minutes / many}"]
    runs: dict[str, list[str]] = {}
    for number, entry in enumerate(entries, start=1):
        before = list(runs)[-1:]
        name = f"{'_'.join(e.directory for e in entries[:number])}.{number}of{many}.{seed}"
        runs[name] = [f"arm={entry.arm}", *entry.settings, f"seed={seed}", *shares]
        runs[name] += [] if steps is None else [f"budget.steps={number * steps // many - (number - 1) * steps // many}"]
        runs[name] += [f"learner.name={quoted(str(recipe.directory / run))}" for run in before]
    return runs


def _line(recipe: Recipe, start: Json, runs: Iterable[str], results: dict[str, Json]) -> list[Json]:
    """Return a path's scores and their cost: the untouched learner, evaluations along each stage, each stage's end."""
    unit, scores = recipe.unit, modality_of(recipe).metrics.scores
    curve: list[Json] = [{"seconds": 0.0, unit: 0, "ends": False, **{key: start.get(key) for key in scores}}]
    for run in runs:
        spent, read = curve[-1]["seconds"], curve[-1][unit]
        points = [(line, False) for line in read_lines(recipe.directory / run / "scores.jsonl")]
        for point, ends in [*points, (results[run], True)]:
            cost = {"seconds": spent + point["seconds"], unit: read + point[unit]}
            curve.append({**cost, "ends": ends, "run": run, **{key: point.get(key) for key in scores}})
    return curve
