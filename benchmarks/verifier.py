"""`make bench-verifier`: V steered by a verifier in place of written solutions, with GRPO on the same problems at equal time.

SmolLM2-135M on the sums of recipes/posttrain.yaml, of which it solves none at first. All time counts, that of attempts
included. Finished runs are kept, so the same command goes on after an interruption. The full run writes verifier.json beside
this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command, parser_of, write_report
from benchmarks.comparison import begun, show, v_minus
from benchmarks.table import interval, markdown_table
from vpretrain.compare.compare import compare
from vpretrain.compare.statistics import correct
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
_COLUMNS = (
    "arm", "Pass@1", "minus one-hot", "V minus it", "answer NLL", "minus one-hot", "V minus it", "top-1", "retention NLL",
    "steps", "seconds",
)  # fmt: skip


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
    """Return each arm's means over the seeds, its differences from one-hot per problem, and V's from the other arms.

    V's differences in Pass@1, for which the benchmark is, are corrected for their number.
    """
    of = {key: figures["differences"][key] for key in ("nll", "solved")}
    of_v = {key: v_minus(found) for key, found in of.items()}
    correct(of_v["solved"].values())
    arms = {
        arm: {key: found.get(key) for key in _KEPT}
        | {f"{key}_minus_one_hot": differences[arm].get("one-hot") for key, differences in of.items()}
        | {f"v_{key}_minus_it": differences.get(arm) for key, differences in of_v.items()}
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
            interval(of["v_solved_minus_it"], "+"),
            f"{of['answer_nll']:.3f}",
            interval(of["nll_minus_one_hot"], "+"),
            interval(of["v_nll_minus_it"], "+"),
            f"{of['answer_top_1']:.1%}",
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
