"""`make bench-verifier`: V steered by a verifier in place of written solutions, with GRPO on the same problems at equal time.

SmolLM2-135M on the sums of recipes/posttrain.yaml, which it partly solves. All time counts, that of attempts included. Finished
runs are kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.command import command, parser_of
from benchmarks.comparison import begun, show
from vpretrain.compare.compare import compare
from vpretrain.config import Recipe
from vpretrain.recipe import load_recipe

ARMS = ("one-hot", "v", "v:feedback.reward=solution", "grpo-feedback")
SEEDS, MINUTES = 2, 4.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print the table."""
    options = parser().parse_args(arguments)
    recipe = recipe_of(options)
    show(compare(recipe, ARMS, seeds=range(options.seeds), resume=begun(recipe)).figures, recipe)
    print(f"results: {recipe.directory / 'results.json'}")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe that all arms share."""
    settings = [
        f"name=verifier-{options.minutes:g}min",
        "feedback.reward=answer",
        f"budget.minutes={options.minutes}",
        "tracking.trackers=[]",
    ]
    return load_recipe("recipes/posttrain.yaml", [*settings, *options.settings])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return parser_of("bench-verifier", __doc__, seeds=SEEDS, minutes=MINUTES)


if __name__ == "__main__":
    command(main)
