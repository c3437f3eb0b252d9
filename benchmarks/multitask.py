"""`make bench-multitask`: three domains in one run, each domain's feedback for its own rows or all feedback summed; resumable.

SmolLM2-135M on recipes/multitask.yaml. The full run writes multitask.json beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import command, console, parser_of, write_report
from benchmarks.comparison import begun
from benchmarks.table import domains_table
from vpretrain.compare.results import START, summarise
from vpretrain.compare.runs import run_group
from vpretrain.files import read_lines
from vpretrain.recipe import load_recipe

ARMS = {
    "one-hot": ["arm=one-hot"],
    "v": ["arm=v"],  # Eq 46
    "v-sum": ["arm=v", "value.domains=sum"],  # Eq 18
}
SEEDS = (0, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print and write the table."""
    settings = parser_of("bench-multitask", __doc__).parse_args(arguments).settings
    recipe = load_recipe(Path("recipes/multitask.yaml"), settings)
    members = {START: [*ARMS["one-hot"], "budget.steps=0"]}
    members |= {f"{arm}.{seed}": [*own, f"seed={seed}"] for seed in SEEDS for arm, own in ARMS.items()}
    results = run_group(recipe, members, resume=begun(recipe))
    names = {START: [START]} | {arm: [f"{arm}.{seed}" for seed in SEEDS] for arm in ARMS}
    runs = {arm: [results[name] for name in of_arm] for arm, of_arm in names.items()}
    scores = {a: [read_lines(recipe.directory / name / "scores.jsonl") for name in of] for a, of in names.items()}
    report: dict[str, Any] = summarise(runs, scores, recipe)
    report |= {"seeds": SEEDS, "recipe": recipe.model_dump(mode="json")}
    header, *rows = domains_table(report)
    view = Table(*header, title=recipe.name)
    for row in rows:
        view.add_row(*row)
    console().print(view)
    file = recipe.directory / "results.json" if settings else Path(__file__).with_suffix(".json")
    write_report("bench-multitask", report, file)


if __name__ == "__main__":
    command(main)
