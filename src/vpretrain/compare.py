"""Arms under one budget, each in its own process, from the same start: a table, paired differences, curves."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.recipe import room
from vpretrain.run.group import run_group

START = "step-0"
SECONDS_TOLERANCE = 0.03


def compare(recipe: Recipe, arms: Sequence[str], *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run the untouched learner and each arm, one after the other; returns and writes results.json.

    Args:
        recipe: what all arms share.
        arms: names of arms, e.g. ["one-hot", "v"].
        resume: keep the arms that are finished, continue the one that was interrupted.
        overwrite: throw away an earlier comparison of this name.

    Raises:
        UserError: an unknown arm, a taken directory, or an arm that failed (its own message stands above).
        Interrupted: a signal stopped it, after the running arm had saved itself.
    """
    unknown = [arm for arm in arms if arm not in recipe.arms]
    if unknown or not arms:
        raise UserError(f"unknown arm {', '.join(unknown) or '(none given)'}: choose from {', '.join(recipe.arms)}")
    members = {START: [f"arm={recipe.baseline}", "budget.steps=0"]} | {arm: [f"arm={arm}"] for arm in arms}
    results = summarise(run_group(recipe, members, resume=resume, overwrite=overwrite), recipe)
    (recipe.directory / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results


def summarise(runs: dict[str, dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """Figures of all arms, and for every arm its difference from the baseline, paired over what was evaluated on."""
    figures = room(recipe.modality, "figures")
    results: dict[str, Any] = {
        "arms": {name: {k: v for k, v in run.items() if k not in ("name", figures.CASES)} for name, run in runs.items()}
    }
    if recipe.baseline in runs:
        key = next(key for key in figures.PAIRED if all(key in case for case in runs[START][figures.CASES]))
        scores = {name: [case[key] for case in run[figures.CASES]] for name, run in runs.items()}
        for name in runs:
            if name != recipe.baseline:
                difference = paired(scores[name], scores[recipe.baseline])
                results[_minus(name, recipe.baseline)] = {**difference, "of": figures.PAIRED[key]}
    results["recipe"] = recipe.model_dump(mode="json")
    results["versions"] = versions()
    return results


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("vpretrain", "torch", "transformers")} | {
        "python": platform.python_version()
    }


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Imported late: statistics needs torch, the rest of this file does not."""
    from vpretrain.statistics import paired_difference

    return paired_difference(a, b)


def table(results: dict[str, Any], recipe: Recipe) -> Table:
    """The results for a terminal."""
    figures = room(recipe.modality, "figures")
    matched = "training time" if recipe.budget.minutes else "steps"
    view = Table(title=f"{recipe.name}: {figures.HEADLINE} after equal {matched}")
    unit = recipe.unit
    shown = {name: [show(arm) for arm in results["arms"].values()] for name, show in figures.COLUMNS.items()}
    shown = {name: column for name, column in shown.items() if set(column) != {"-"}}  # what was measured
    for column in ("arm", *shown, "steps", unit, "seconds", f"{unit}/s", "peak memory"):
        view.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for number, (name, arm) in enumerate(results["arms"].items()):
        rate = arm[f"{unit}_per_s"]
        view.add_row(
            name,
            *(column[number] for column in shown.values()),
            f"{arm['steps']:,}",
            f"{arm[unit]:,}",
            f"{arm['seconds']:.1f}",
            "-" if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}",
            f"{arm['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
    return view


def remarks(results: dict[str, Any], recipe: Recipe) -> list[str]:
    """What a reader of the table must know besides: differences with intervals, unequal times, idle designers."""
    figures = room(recipe.modality, "figures")
    lines = []
    trained = {name: arm for name, arm in results["arms"].items() if arm["steps"]}
    for name in trained:
        difference = results.get(_minus(name, recipe.baseline))
        if difference:
            lines.append(
                f"{name} minus {recipe.baseline}: {difference['mean']:+.4f} {difference['of']}, 95 % interval "
                f"[{difference['low']:+.4f}, {difference['high']:+.4f}], paired over {figures.CASES}"
            )
    for name, arm in trained.items():
        if arm["meta_updates"]:
            means = "".join(f"{key.replace('_', ' ')} {arm[key]:.3f}, " for key in arm if key.startswith("mean_"))
            lines.append(f"{name}: {means}{arm['meta_updates']} meta updates")
        if "warning" in arm:
            lines.append(f"warning: {name}: {arm['warning']}")
    seconds = [arm["seconds"] for arm in trained.values()]
    if recipe.budget.minutes and seconds and max(seconds) > (1 + SECONDS_TOLERANCE) * min(seconds):
        lines.append(f"warning: training times differ by more than {SECONDS_TOLERANCE:.0%}; raise budget.minutes")
    return lines


def draw_curves(recipe: Recipe, names: Sequence[str]) -> Path | None:
    """Loss, what the designer does, and value against training seconds, as a picture; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory, curves = recipe.directory, room(recipe.modality, "figures").CURVES
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for index, name in enumerate(names):
        lines = [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]
        for panel, key in zip(panels, curves, strict=True):
            points = [(line["seconds"], line[key]) for line in lines if key in line]
            if points and (key == "loss" or any(y for _, y in points)):
                panel.plot(
                    *zip(*points, strict=True),
                    label=name,
                    color=f"C{index}",
                    linestyle=["-", "--", ":", "-."][index % 4],
                )
    for panel, title in zip(panels, curves.values(), strict=True):
        panel.set_xlabel("training seconds")
        panel.set_title(title)
        if panel.lines:
            panel.legend()
    figure.savefig(directory / "curves.png", dpi=120)
    pyplot.close(figure)
    return directory / "curves.png"


def _minus(name: str, baseline: str) -> str:
    return f"{name}_minus_{baseline}".replace("-", "_")
