"""Several runs of one recipe beside the untouched learner, and one file with the outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vpretrain.compare.results import START
from vpretrain.compare.runs import run_group
from vpretrain.config import Recipe
from vpretrain.files import write_whole
from vpretrain.run.versions import versions
from vpretrain.types import Json


class Study:
    """Runs that share a recipe.

    Args:
        recipe: its directory holds the directories of the runs.
        file: name of the file with the outcome.
    """

    def __init__(self, recipe: Recipe, file: str) -> None:
        self.recipe, self.file = recipe, file

    def run(self, members: Mapping[str, Sequence[str]], **how: Any) -> dict[str, Json]:
        """Measure the untouched learner, named `START`, then run the members; returns every result.

        Args:
            members: name -> settings (`field=value`) of its own.
            how: as in `run_group`.

        Raises: as `run_group`.
        """
        untouched = {START: [f"arm={self.recipe.baseline}", "budget.steps=0"]}
        return run_group(self.recipe, untouched | dict(members), **how)

    def write(self, outcome: Json) -> Json:
        """Write the outcome with the recipe and the versions; returns it."""
        outcome = outcome | {"recipe": self.recipe.model_dump(mode="json"), "versions": versions()}
        write_whole(self.recipe.directory / self.file, json.dumps(outcome, indent=1))
        return outcome
