"""The presentation of a comparison: a table, remarks and curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from vpretrain.compare.results import SECONDS_TOLERANCE, START, pairs, run_name
from vpretrain.config import Recipe
from vpretrain.files import read_lines
from vpretrain.modality import modality_of
from vpretrain.plot import pyplot
from vpretrain.tables import cells, grid
from vpretrain.types import Json

_PANELS = 5  # of a figure, side by side
FEW_UPDATES = 10  # meta updates below which a designer is close to its start
SLOW = 0.7  # fraction of the baseline's throughput; the lowest of V undisturbed is 0.72 (benchmarks/gsm8k.json)


def table(results: Json, recipe: Recipe) -> Table:
    """Return the results as a table for a terminal."""
    return grid(title(results, recipe), cells(results["arms"], recipe))


def title(results: Json, recipe: Recipe) -> str:
    """Return the table's title: what was measured, after equal what."""
    matched = "training time" if by_minutes(results["arms"], recipe) else "steps"
    return f"{recipe.name}: {modality_of(recipe).metrics.headline} after equal {matched}"


def remarks(results: Json, recipe: Recipe) -> list[str]:
    """Return remarks for readers of the table: differences with intervals, unequal times, idle designers."""
    metrics = modality_of(recipe).metrics
    trained = {name: arm for name, arm in results["arms"].items() if arm["steps"]}
    seeds = len(results["seeds"])
    designed = {arm.name for arm in recipe.arms.values() if arm.designer}
    over = f", paired over {metrics.cases}" + (f" and {seeds} seeds" if seeds > 1 else "")
    parts = [("", results["differences"], over)]
    apart = {f"after {found['at']:,.0f} {axis}, ": found for axis, found in results.get("matched", {}).items()}
    apart |= {f"domain {domain}, ": found for domain, found in results.get("by_domain", {}).items()}
    parts += [(where, {key: found[key]["differences"] for key in results["of"]}, "") for where, found in apart.items()]
    lines = [
        f"{where}{name} minus {other}: {interval(differences[key][name][other], unit)}{how}"
        for where, differences, how in parts
        for key, unit in results["of"].items()
        for name, other in pairs(trained, recipe.baseline)
    ]
    lines += [
        f"{name} minus {other}, on {metrics.paired[key].measured_on}: "
        f"{interval(found[name][other], metrics.paired[key].unit)}"
        for key, found in results["differences"].items()
        for name, other in pairs(trained, recipe.baseline)
        if key not in results["of"] and other == recipe.baseline
    ]
    for name, arm in trained.items():
        if arm["meta_updates"]:
            means = "".join(f"{key.replace('_', ' ')} {arm[key]:.3f}, " for key in arm if key.startswith("mean_"))
            lines.append(f"{name}: {means}{arm['meta_updates']:g} meta update{'' if arm['meta_updates'] == 1 else 's'}")
        if "warning" in arm:
            lines.append(f"warning: {name}: {arm['warning']}")
        if arm["arm"] in designed and 0 < arm["meta_updates"] < FEW_UPDATES:
            lines.append(
                f"warning: {name} had under {FEW_UPDATES} meta updates, so its designer is hardly trained; raise the budget"
            )
    return lines + _disturbances(trained, recipe)


def by_minutes(arms: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether the budget's minutes, and not its steps, ended some or all of the runs."""
    return bool(recipe.budget.minutes) and any(run["steps"] != recipe.budget.steps for run in _runs(arms))


def unequal(arms: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether arms with the same minutes trained for different times, since a run ends with a whole step."""
    seconds = [run["seconds"] for run in _runs(arms)]
    return by_minutes(arms, recipe) and max(seconds) > (1 + SECONDS_TOLERANCE) * min(seconds)


def _runs(arms: Mapping[str, Json]) -> list[Json]:
    """Return the runs that trained, one per seed."""
    return [run for arm in arms.values() if arm["steps"] for run in arm.get("runs", [arm])]


def _disturbances(trained: Mapping[str, Json], recipe: Recipe) -> list[str]:
    """Return warnings against a comparison by time."""
    lines, rate, budget = [], f"{recipe.unit}_per_s", recipe.budget
    if unequal(trained, recipe):
        why, remedy = "a run ends with a step", "raise budget.minutes"
        if any(run["steps"] == budget.steps for run in _runs(trained)):
            why, remedy = "budget.steps ended some of the runs", "leave it out"
        lines.append(f"warning: training times differ by more than {SECONDS_TOLERANCE:.0%}, as {why}; {remedy}")
    base = trained.get(recipe.baseline, {}).get(rate)
    steered = {arm.name for arm in recipe.arms.values() if arm.steered}
    for name, arm in trained.items():
        if base and arm["arm"] in steered and arm[rate] < SLOW * base:
            lines.append(
                f"warning: {name} read {recipe.unit} at {arm[rate] / base:.0%} of {recipe.baseline}'s rate; unless "
                "`vpretrain profile` shows why, something else used the machine: run again alone, or with --rounds 4"
            )
    return lines


def draw_curves(recipe: Recipe, results: Json) -> Path | None:
    """Plot loss, gate and value against training seconds, whichever there are, and main scores where they were taken.

    A thin line is a seed. Returns None without matplotlib, and if no arm has made a step.
    """
    plot = pyplot()
    if plot is None or not any(arm["steps"] for arm in results["arms"].values()):
        return None
    metrics, unit = modality_of(recipe).metrics, recipe.unit
    panels = [("metrics", "seconds", key, title) for key, title in metrics.curves.items()]
    if any(file.stat().st_size for file in recipe.directory.glob("*/scores.jsonl")):
        first = next(iter(metrics.objectives))
        scores = {first: metrics.objectives[first], **metrics.also_plotted}
        panels += [("scores", axis, key, title) for key, (_, title) in scores.items() for axis in ("seconds", unit)]
    drawn = [(panel, curves) for panel in panels if (curves := list(_curves(recipe, results, *panel[:3])))]
    rows = -(-len(drawn) // _PANELS)
    columns = -(-len(drawn) // rows)
    size = (4.3 * columns, 3.8 * rows)
    figure, axes = plot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    for axis, ((file, x, _, title), curves) in zip(axes.flat[: len(drawn)], drawn, strict=True):
        for index, number, arm, points in curves:
            axis.plot(
                *zip(*points, strict=True),
                label=arm if number == 0 else None,
                color=f"C{index % 10}",
                linestyle=["-", "--", ":", "-."][index % 4],
                linewidth=1.5 if len(results["seeds"]) == 1 else 0.8,
                marker="." if file == "scores" else None,
            )
        axis.set_xlabel("training seconds" if x == "seconds" else x)
        axis.set_title(title)
        axis.legend(fontsize=8)
    figure.savefig(recipe.directory / "curves.png", dpi=120)
    plot.close(figure)
    return recipe.directory / "curves.png"


def _curves(
    recipe: Recipe, results: Json, file: str, x: str, y: str
) -> Iterator[tuple[int, int, str, list[tuple[float, float]]]]:
    """Yield (arm's number, seed's number, arm, points) of all runs with values of y that are not 0 throughout."""
    for index, arm in enumerate(name for name, figures in results["arms"].items() if figures["steps"]):
        for number, seed in enumerate(results["seeds"]):
            run = recipe.directory / run_name(arm, seed, results["seeds"])
            points = [(line[x], line[y]) for line in _lines(run, file, results) if line.get(y) is not None]
            if points and (file == "scores" or y == "loss" or any(value for _, value in points)):
                yield index, number, arm, points


def _lines(run: Path, file: str, results: Json) -> list[Json]:
    """Return the lines of a run's log; scores with the untouched learner before and the result after them."""
    lines = read_lines(run / f"{file}.jsonl")
    if file == "metrics":
        return lines
    return [results["arms"][START], *lines, json.loads((run / "result.json").read_text(encoding="utf-8"))]


def interval(difference: Mapping[str, float], of: str) -> str:
    """Format a difference with its unit, and p if it is corrected for the number of differences."""
    text = f"{difference['mean']:+.4f} {of}, 95 % interval [{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return text + (f", p = {difference['p_holm']:.2g}" if "p_holm" in difference else "")
