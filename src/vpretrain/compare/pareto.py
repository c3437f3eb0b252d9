"""`vpretrain pareto`: the trade-off between two objectives, over weights of the feedback (the paper's Fig 3d)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from vpretrain.compare.results import START, over_seeds, values_of
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.compare.study import run_study, write_study
from vpretrain.compare.tables import of_seeds
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.modality import Metrics, modality_of
from vpretrain.plot import pyplot, save_figure
from vpretrain.tables import grid
from vpretrain.types import Json


def pareto(recipe: Recipe, points: Sequence[Sequence[str]], *, resume: bool = False, overwrite: bool = False) -> Json:
    """Run the untouched learner, the baseline, and V-pretraining at every point; return and write pareto.json.

    Args:
        recipe: the recipe that all runs share.
        points: settings (`field=value`) of each point; none: the modality's own.
        resume, overwrite: as in `compare`.

    Raises:
        UserError: no points, or as `run_group` raises it.
        Interrupted: a signal stopped it, after the current point had saved its state.
    """
    metrics = modality_of(recipe).metrics
    points = points or metrics.pareto_points
    if not points:
        raise UserError(f"give the points: --point field=value,field=value for each; {recipe.modality} has none ready")
    members = {recipe.baseline: [f"arm={recipe.baseline}"]}
    arm = "v" if recipe.arm == recipe.baseline else recipe.arm
    members |= {name: [f"arm={arm}", *point] for name, point in _names(points).items()}
    start = run_study(recipe, {}, resume=resume, overwrite=overwrite)[START]
    if missing := [title for key, (_, title) in metrics.objectives.items() if start[key] is None]:
        raise UserError(f"the evaluation does not measure {' and '.join(missing)}: give it such sources")
    runs = run_study(recipe, members, resume=True)
    scores = {
        name: tuple(sign * run[key] for key, (sign, _) in metrics.objectives.items()) for name, run in runs.items()
    }
    efficient = front(scores)
    differences = {name: _differences(run, runs[recipe.baseline], metrics) for name, run in runs.items()}
    found = [minus for name, minus in differences.items() if name not in (START, recipe.baseline)]
    for beside in (False, True):
        correct(minus[key] for minus in found for key in minus if metrics.paired[key].beside is beside)
    results = {
        "objectives": {key: "higher" if sign > 0 else "lower" for key, (sign, _) in metrics.objectives.items()},
        "points": {
            name: {
                "settings": members.get(name, []),
                "on_front": name in efficient,
                **over_seeds([run], metrics),
                f"minus_{recipe.baseline}".replace("-", "_"): differences[name],
            }
            for name, run in runs.items()
        },
    }
    return write_study(recipe, "pareto.json", results)


def front(scores: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Return names of the scores (higher is better) that no other beats in one objective without losing in another.

    NaN beats nothing, and nothing beats NaN: a score with it is not on the front.
    """

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    known = {name: score for name, score in scores.items() if not any(map(math.isnan, score))}
    return [name for name, score in known.items() if not any(beats(other, score) for other in known.values())]


def pareto_table(results: Json, recipe: Recipe) -> Table:
    """Return the points as a table for a terminal."""
    metrics = modality_of(recipe).metrics
    titles = [title for _, title in metrics.objectives.values()]
    rows = [["point", *titles, "steps", "seconds", "on the front"]]
    for name, point in results["points"].items():
        scores = [f"{point[key]:.4f}" for key in metrics.objectives]
        on_front = "yes" if point["on_front"] else ""
        rows.append([name, *scores, f"{point['steps']:,}", f"{point['seconds']:.1f}", on_front])
    return grid(f"{recipe.name}: {' against '.join(titles)}{of_seeds(1)}", rows)


def draw_pareto(results: Json, recipe: Recipe) -> Path:
    """Plot the points over the two objectives, with the front as a line."""
    objectives = modality_of(recipe).metrics.objectives
    (x, (x_sign, x_title)), (y, (y_sign, y_title)) = objectives.items()
    figure, panel = pyplot().subplots(figsize=(8.4, 4.6), layout="constrained")
    markers = "sDo^v<>PX*"
    for number, (name, point) in enumerate(results["points"].items()):
        marker = markers[number % len(markers)]
        panel.plot(point[x], point[y], marker, label=name, color=f"C{number % 10}", markersize=8, alpha=0.8)
    efficient = sorted((point[x], point[y]) for point in results["points"].values() if point["on_front"])
    panel.plot(*zip(*efficient, strict=True), "--", color="grey", label="front", zorder=0)
    panel.set(xlabel=f"{x_title}, better to the right", ylabel=f"{y_title}, better above")
    if x_sign < 0:
        panel.invert_xaxis()
    if y_sign < 0:
        panel.invert_yaxis()
    panel.margins(0.1)
    panel.locator_params(nbins=5)
    panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return save_figure(figure, recipe.directory / "pareto.png")


def _differences(run: Json, baseline: Json, metrics: Metrics) -> Json:
    """Return the differences from the baseline, paired over the evaluated cases, with intervals."""
    cases = metrics.cases
    return {
        key: paired_difference(values_of([run[cases]], key), values_of([baseline[cases]], key))
        for key in metrics.paired
        if any(key in case for case in run[cases])
    }


def _names(points: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return points by directory name: each field's last word and value, or the whole field where two names are alike."""
    for whole in (False, True):
        named = {_name(point, whole=whole): point for point in points}
        if len(named) == len(points):
            return named
    raise UserError("--point: two points have the same settings, or differ in signs alone; give each once")


def _name(point: Sequence[str], *, whole: bool) -> str:
    words = []
    for setting in point:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--point: '{setting}' must have the form field=value, several with commas between them")
        words.append(f"{field if whole else field.rsplit('.', 1)[-1]}-{value}")
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(words))
