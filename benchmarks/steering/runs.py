"""Single runs of the benchmark's recipe, each made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpretrain.config import Recipe
from vpretrain.recipe import parse_recipe, with_overrides
from vpretrain.run import run_recipe


def result_of(recipe: Recipe, name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the result of a run with these settings, from its file if it was made before."""
    file = Path(recipe.output) / name / "result.json"
    if not file.exists():
        changed = with_overrides(recipe.model_dump(mode="json"), [f"name={name}", *settings])
        run_recipe(parse_recipe(changed), overwrite=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
