"""Single runs of the benchmark's recipe, each made once, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vpretrain.compare.results import run_name, values_of
from vpretrain.config import Recipe
from vpretrain.files import read_json
from vpretrain.recipe import parse_recipe, with_overrides
from vpretrain.run import run_recipe

LEAST = 0.85  # of the median steps of an arm's seeds: below it something else used the machine


def result_of(recipe: Recipe, name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the result of a run with these settings, from its file if it was made before."""
    file = Path(recipe.output) / name / "result.json"
    if not file.exists():
        changed = with_overrides(recipe.model_dump(mode="json"), [f"name={name}", *settings])
        run_recipe(parse_recipe(changed), overwrite=True)
    return read_result(file.parent)


def read_result(directory: Path) -> dict[str, Any]:
    """Return the result of a finished run."""
    found: dict[str, Any] = read_json(directory / "result.json")
    return found


def problems_of(runs: Sequence[dict[str, Any]], key: str = "nll") -> list[list[float]]:
    """Return a figure of every problem, [S, N]: its NLL, or that after one temperature."""
    return values_of([run["problems"] for run in runs], key)


def retention_of(runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Return the NLL of the retention text, [S, 1]."""
    return [[run["retention_nll"]] for run in runs]


def disturbed(recipe: Recipe, results: dict[str, Any]) -> list[Path]:
    """Return the directories of a comparison's runs that made too few steps beside the other seeds of their arm.

    All have the same time. Two seeds do not tell which of them was slowed down, so there is none below three.
    """
    found: list[Path] = []
    for arm, figures in results["arms"].items():
        runs = figures.get("runs", [])
        if len(runs) > 2:
            least = LEAST * median(run["steps"] for run in runs)
            slow = [run["seed"] for run in runs if run["steps"] < least]
            found += [recipe.directory / run_name(arm, seed, results["seeds"]) for seed in slow]
    return found
