"""Single runs of the benchmark's recipe, each made once, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpretrain.compare.results import values_of
from vpretrain.config import Recipe
from vpretrain.files import read_json
from vpretrain.recipe import parse_recipe, with_overrides
from vpretrain.run import run_recipe


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


def problems_of(runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Return the NLL of every problem, [S, N]."""
    return values_of([run["problems"] for run in runs], "nll")


def retention_of(runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Return the NLL of the retention text, [S, 1]."""
    return [[run["retention_nll"]] for run in runs]
