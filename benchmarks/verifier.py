"""`make bench-verifier`: V steered by a verifier in place of written solutions, with GRPO on the same problems at equal time.

SmolLM2-135M on the sums of recipes/posttrain.yaml, which it partly solves. All time counts, that of attempts included. Finished
runs are kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.command import command
from vpretrain.compare.compare import compare
from vpretrain.compare.tables import remarks, table
from vpretrain.config import Recipe
from vpretrain.recipe import load_recipe

ARMS = ("one-hot", "v", "v:feedback.reward=solution", "grpo-feedback")
SEEDS, MINUTES = 2, 4.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print the table."""
    options = parser().parse_args(arguments)
    recipe = recipe_of(options)
    resume = (recipe.directory / "recipe.yaml").exists()
    results = compare(recipe, ARMS, seeds=range(options.seeds), resume=resume).figures
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(results, recipe))
    for line in remarks(results, recipe):
        console.print(line, highlight=False)
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
    options = argparse.ArgumentParser(prog="make bench-verifier ARGS=...", description=__doc__)
    options.add_argument("settings", metavar="field=value", nargs="*", help="settings to change in every run")
    options.add_argument("--seeds", type=int, default=SEEDS, help="how many (default: %(default)s)")
    options.add_argument("--minutes", type=float, default=MINUTES, help="training time of a run (default: %(default)s)")
    return options


if __name__ == "__main__":
    command(main)
