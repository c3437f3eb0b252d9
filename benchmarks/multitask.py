"""`make bench-multitask`: three domains in one run, each domain's feedback for its own rows or all feedback summed; resumable.

SmolLM2-135M on recipes/multitask.yaml. The full run writes multitask.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command import command
from benchmarks.table import domains_table
from vpretrain.compare.results import START, summarise
from vpretrain.compare.runs import run_group
from vpretrain.files import read_lines
from vpretrain.recipe import load_recipe
from vpretrain.run.versions import versions

ARMS = {
    "one-hot": ["arm=one-hot"],
    "v": ["arm=v"],  # Eq 46
    "v-sum": ["arm=v", "value.domains=sum"],  # Eq 18
}
SEEDS = (0, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print and write the table."""
    parser = argparse.ArgumentParser(prog="make bench-multitask ARGS=...", description=__doc__)
    parser.add_argument("settings", metavar="field=value", nargs="*", help="settings to change in every run")
    settings = parser.parse_args(arguments).settings
    recipe = load_recipe(Path("recipes/multitask.yaml"), settings)
    members = {START: [*ARMS["one-hot"], "budget.steps=0"]}
    members |= {f"{arm}.{seed}": [*own, f"seed={seed}"] for seed in SEEDS for arm, own in ARMS.items()}
    results = run_group(recipe, members, resume=(recipe.directory / "recipe.yaml").exists())
    names = {START: [START]} | {arm: [f"{arm}.{seed}" for seed in SEEDS] for arm in ARMS}
    runs = {arm: [results[name] for name in of_arm] for arm, of_arm in names.items()}
    scores = {a: [read_lines(recipe.directory / name / "scores.jsonl") for name in of] for a, of in names.items()}
    report: dict[str, Any] = {"command": "make bench-multitask", **summarise(runs, scores, recipe), "seeds": SEEDS}
    report |= {"recipe": recipe.model_dump(mode="json"), "versions": versions()}
    header, *rows = domains_table(report)
    view = Table(*header, title=recipe.name)
    for row in rows:
        view.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(view)
    file = recipe.directory / "results.json" if settings else Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"results: {file}")


if __name__ == "__main__":
    command(main)
