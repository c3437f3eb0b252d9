"""Several runs of one recipe beside the untouched learner, and one file with the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpretrain.compare.results import START
from vpretrain.compare.runs import run_group
from vpretrain.config import Recipe
from vpretrain.files import write_json
from vpretrain.run.versions import versions
from vpretrain.types import Json


def run_study(recipe: Recipe, members: Mapping[str, Sequence[str]], **kwargs: Any) -> dict[str, Json]:
    """Measure the untouched learner, named `START`, then run the members; otherwise as `run_group`."""
    return run_group(recipe, {START: [f"arm={recipe.baseline}", "budget.steps=0"], **members}, **kwargs)


def write_study(recipe: Recipe, file: str, outcome: Json) -> Json:
    """Write the outcome of a study, with its recipe and the versions, in its directory; return it."""
    outcome = outcome | {"recipe": recipe.model_dump(mode="json"), "versions": versions()}
    write_json(recipe.directory / file, outcome)
    return outcome
