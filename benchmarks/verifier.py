"""`make bench-verifier`: V steered by a verifier in place of written solutions, with GRPO on the same problems at equal time.

SmolLM2-135M on the sums of recipes/posttrain.yaml, which it partly solves. All time counts, that of attempts included. Finished
runs are kept, so the same command goes on after an interruption. The full run writes verifier.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command, parser_of, write_report
from benchmarks.comparison import begun, show
from benchmarks.table import interval, markdown_table
from vpretrain.compare.compare import compare
from vpretrain.config import Recipe
from vpretrain.recipe import load_recipe

ARMS = ("one-hot", "v", "v:feedback.reward=solution", "grpo-feedback")
SEEDS, MINUTES = 2, 4.0
_KEPT = (
    "answer_nll",
    "answer_top_1",
    "pass_at_1",
    "retention_nll",
    "mean_alpha",
    "meta_updates",
    "steps",
    "tokens",
    "seconds",
)
_COLUMNS = ("arm", "Pass@1", "minus one-hot", "answer NLL", "minus one-hot", "retention NLL", "steps", "seconds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print the table."""
    options = parser().parse_args(arguments)
    recipe = recipe_of(options)
    figures = compare(recipe, ARMS, seeds=range(options.seeds), resume=begun(recipe)).figures
    show(figures, recipe)
    full = (options.seeds, options.minutes) == (SEEDS, MINUTES)
    file = Path(__file__).with_suffix(".json") if full else recipe.directory / "verifier.json"
    write_report("bench-verifier", summary(figures), file, minutes=options.minutes)
    print(markdown(summary(figures)))


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Return each arm's means over the seeds, and its differences from one-hot per problem."""
    arms = {
        arm: {key: found.get(key) for key in _KEPT}
        | {
            f"{key}_minus_one_hot": figures["differences"].get(key, {}).get(arm, {}).get("one-hot")
            for key in ("nll", "solved")
        }
        for arm, found in figures["arms"].items()
    }
    return {"seeds": len(figures["seeds"]), "arms": arms, "remarks": figures["remarks"]}


def markdown(report: dict[str, Any]) -> str:
    """Format one line per arm, with 95 % intervals of the differences."""
    rows = [
        (
            arm,
            f"{of['pass_at_1']:.1%}",
            interval(of["solved_minus_one_hot"], "+"),
            f"{of['answer_nll']:.3f}",
            interval(of["nll_minus_one_hot"], "+"),
            f"{of['retention_nll']:.3f}",
            f"{of['steps']:.0f}",
            f"{of['seconds']:.0f}",
        )
        for arm, of in report["arms"].items()
    ]
    return markdown_table(_COLUMNS, rows)


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
