"""Figures of a comparison: its curves, scores against a setting (the paper's Fig 3a), and Pass@k against k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vpretrain.compare.entry import parse_entry
from vpretrain.compare.results import START, run_name
from vpretrain.config import Recipe
from vpretrain.files import read_json, read_lines
from vpretrain.modality import modality_of
from vpretrain.plot import can_draw, name_lines, pyplot, save_figure
from vpretrain.types import Json

_PANELS = 5  # of a figure, side by side
_LINES = ("-", "--", ":", "-.")


def draw_curves(results: Json, recipe: Recipe) -> Path | None:
    """Plot loss, gate and value against training seconds, whichever there are, and main scores where they were taken.

    A thin line is a seed. Returns None without matplotlib, and if there is nothing to plot.

    Examples:
        >>> results = compare(load_recipe("recipe.yaml"), ["one-hot", "v"], overwrite=True)
        >>> draw_curves(results.figures, results.recipe).name
        'curves.png'
    """
    if not can_draw():
        return None
    metrics, unit = modality_of(recipe).metrics, recipe.unit
    panels = [("metrics", "seconds", key, title) for key, title in metrics.curves.items()]
    if any(file.stat().st_size for file in recipe.directory.glob("*/scores.jsonl")):
        first = next(iter(metrics.objectives))
        scores = {first: metrics.objectives[first], **metrics.also_plotted}
        panels += [("scores", axis, key, title) for key, (_, title) in scores.items() for axis in ("seconds", unit)]
    drawn = [(panel, curves) for panel in panels if (curves := list(_curves(results, recipe, *panel[:3])))]
    if not drawn:  # no arm has made a step, or its log is gone
        return None
    rows = -(-len(drawn) // _PANELS)
    columns = -(-len(drawn) // rows)
    size = (4.3 * columns, 3.8 * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    for axis, ((file, x, _, title), curves) in zip(axes.flat[: len(drawn)], drawn, strict=True):
        for index, number, arm, points in curves:
            axis.plot(
                *zip(*points, strict=True),
                label=arm if number == 0 else None,
                color=f"C{index % 10}",
                linestyle=_LINES[index % 4],
                linewidth=1.5 if len(results["seeds"]) == 1 else 0.8,
                marker="." if file == "scores" else None,
            )
        axis.set(title=title, xlabel="training seconds" if x == "seconds" else x)
    name_lines(figure)
    return save_figure(figure, recipe.directory / "curves.png")


def _curves(
    results: Json, recipe: Recipe, file: str, x: str, y: str
) -> Iterator[tuple[int, int, str, list[tuple[float, float]]]]:
    """Yield (arm's number, seed's number, arm, points) of all runs with values of y that are not 0 throughout."""
    for index, arm in enumerate(name for name, figures in results["arms"].items() if figures["steps"]):
        for number, seed in enumerate(results["seeds"]):
            run = recipe.directory / run_name(arm, seed, results["seeds"])
            lines = read_lines(run / f"{file}.jsonl")
            if file == "scores":  # from the untouched learner to the result
                end = read_json(run / "result.json")
                lines = [results["arms"][START], *lines, end]
            points = [(line[x], line[y]) for line in lines if line.get(y) is not None]
            if points and (file == "scores" or y == "loss" or any(value for _, value in points)):
                yield index, number, arm, points


def draw_settings(results: Json, recipe: Recipe) -> Path | None:
    """Plot each score against the number in which entries of one arm differ, such as v:feedback.sources.0.limit=1024.

    A dot is a seed, a line goes through the means over seeds; a dashed line is an arm without settings of its own. Returns None
    without matplotlib, if no two entries differ in one number alone, and if no score was measured.
    """
    arms = results["arms"]
    lines, plain = by_setting(list(arms)), [name for name in arms if not parse_entry(name).settings]
    scores = {
        key: title
        for key, (_, title) in modality_of(recipe).metrics.scores.items()
        if all(arm.get(key) is not None for arm in arms.values())
    }
    if not (can_draw() and lines and scores):
        return None
    fields = list(dict.fromkeys(field for _, field in lines))
    size = (4.3 * len(scores), 3.8 * len(fields))
    figure, axes = pyplot().subplots(len(fields), len(scores), figsize=size, layout="constrained", squeeze=False)
    for row, field in zip(axes, fields, strict=True):
        for axis, (key, title) in zip(row, scores.items(), strict=True):
            for number, name in enumerate(plain):
                axis.axhline(arms[name][key], label=name, color=f"C{number % 10}", linestyle="--", linewidth=1)
            own = [(name, points) for (name, of), points in lines.items() if of == field]
            for number, (name, points) in enumerate(own, start=len(plain)):
                colour = f"C{number % 10}"
                axis.plot([x for x, _ in points], [arms[label][key] for _, label in points], label=name, color=colour)
                seeds = [(x, run[key]) for x, label in points for run in arms[label].get("runs", [arms[label]])]
                axis.plot(*zip(*seeds, strict=True), "o", color=colour, markersize=4)
            axis.set(title=title, xlabel=field)
    name_lines(figure)
    return save_figure(figure, recipe.directory / "settings.png")


def by_setting(labels: Sequence[str]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """Return the entries of a comparison that differ in one number alone.

    (The entry without the setting, the setting's name) -> its values in ascending order, each with the entry's label.
    """
    lines: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for label in labels:
        entry = parse_entry(label)
        for setting in entry.settings:
            field, _, value = setting.partition("=")
            rest = ":".join([entry.arm, *(other for other in entry.settings if other != setting)])
            try:
                lines.setdefault((rest, field), []).append((float(value), label))
            except ValueError:
                continue
    return {line: sorted(points) for line, points in lines.items() if len(points) > 1}


def draw_pass_at_k(results: Json, recipe: Recipe) -> Path | None:
    """Plot Pass@k against k, as means over seeds. Returns None without matplotlib, and if no solutions were drawn."""
    arms = {name: arm for name, arm in results["arms"].items() if arm.get("pass_at_k")}
    if not (can_draw() and arms):
        return None
    figure, axis = pyplot().subplots(figsize=(5.2, 3.8), layout="constrained")
    for number, (name, arm) in enumerate(arms.items()):
        ks = sorted(map(int, arm["pass_at_k"]))
        values = [arm["pass_at_k"][str(k)] for k in ks]
        axis.plot(ks, values, _LINES[number % 4], label=name, color=f"C{number % 10}", marker=".")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set(title="Pass@k", xlabel="k")
    name_lines(figure)
    return save_figure(figure, recipe.directory / "pass_at_k.png")
