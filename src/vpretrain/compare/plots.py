"""Figures of a comparison at the end of its budget: scores against a setting (the paper's Fig 3a), and Pass@k against k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpretrain.compare.entry import parse_entry
from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.plot import pyplot
from vpretrain.types import Json


def draw_settings(recipe: Recipe, results: Json) -> Path | None:
    """Plot each score against the number in which entries of one arm differ, such as v:feedback.sources.0.limit=1024.

    A dot is a seed, a line goes through the means over seeds; a dashed line is an arm without settings of its own. Returns None
    without matplotlib, if no two entries differ in one number alone, and if no score was measured.
    """
    plot, arms = pyplot(), results["arms"]
    lines, plain = by_setting(list(arms)), [name for name in arms if not parse_entry(name).settings]
    scores = {
        key: title
        for key, (_, title) in modality_of(recipe).metrics.scores.items()
        if all(arm.get(key) is not None for arm in arms.values())
    }
    if plot is None or not lines or not scores:
        return None
    fields = list(dict.fromkeys(field for _, field in lines))
    size = (4.3 * len(scores), 3.8 * len(fields))
    figure, axes = plot.subplots(len(fields), len(scores), figsize=size, layout="constrained", squeeze=False)
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
            axis.set_xlabel(field)
            axis.set_title(title)
        row[0].legend(fontsize=8)
    file = recipe.directory / "settings.png"
    figure.savefig(file, dpi=120)
    plot.close(figure)
    return file


def by_setting(labels: Sequence[str]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """Return the entries that differ in one number alone.

    Args:
        labels: of a comparison's entries.

    Returns:
        (the entry without the setting, the setting's name) -> its values in ascending order, each with the entry's label.
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


def draw_pass_at_k(recipe: Recipe, results: Json) -> Path | None:
    """Plot Pass@k against k, as means over seeds. Returns None without matplotlib, and if no solutions were drawn."""
    plot, arms = pyplot(), {name: arm for name, arm in results["arms"].items() if arm.get("pass_at_k")}
    if plot is None or not arms:
        return None
    figure, axis = plot.subplots(figsize=(5.2, 3.8), layout="constrained")
    for number, (name, arm) in enumerate(arms.items()):
        ks = sorted(map(int, arm["pass_at_k"]))
        values = [arm["pass_at_k"][str(k)] for k in ks]
        axis.plot(ks, values, ["-", "--", ":", "-."][number % 4], label=name, color=f"C{number % 10}", marker=".")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xlabel("k")
    axis.set_title("Pass@k")
    axis.legend(fontsize=8)
    file = recipe.directory / "pass_at_k.png"
    figure.savefig(file, dpi=120)
    plot.close(figure)
    return file
