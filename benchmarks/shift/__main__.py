"""`make bench-shift`: every arm and seed on the real learner, then V with smaller feedback sets; resumable. Prints tables and
writes results.json and results.md beside this file, or below runs/ where it is not the full benchmark. Finished runs are
recorded in runs.jsonl, unless --quick, --validation, settings or other minutes are given: with --add, the benchmark goes on
from those, after an interruption or on another machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command import command, comparison_options, variant, write_report
from benchmarks.shift.data import ROLES, write
from benchmarks.sittings import Sittings, add_option
from benchmarks.steering.__main__ import summary
from benchmarks.steering.table import arms_markdown
from vpretrain.compare.entry import split_entries
from vpretrain.compare.plots import draw_curves
from vpretrain.compare.tables import remarks, table
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe

ARMS = (
    "one-hot", "v", "uniform", "self-distillation", "random-feedback", "selection", "token-weights", "v-learned", "v-paper",
    "mixed-in", "v-mixed-in",
)  # fmt: skip
SEEDS, MINUTES, SIZES = 5, 2.0, (16, 64, 256, 1024)  # all arms use the last size
FEW = 3  # seeds of the smaller sizes
_TRAIN, _DATA = Path("data/gsm8k/train.jsonl"), Path("data/gsm8k-shift")
_ROOT, _HERE = Path("runs/shift"), Path(__file__).parent
_RECORDS = _HERE / "runs.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or a part of it."""
    options = parser().parse_args(arguments)
    require_data()
    console = Console(width=None if sys.stdout.isatty() else 160)
    arms = ["one-hot", "v"] if options.quick else split_entries(options.arms)
    seeds = list(range(1 if options.quick else options.seeds))
    *smaller, whole = map(int, options.sizes.split(","))
    recorded = not (options.quick or options.settings or options.validation) and options.minutes == MINUTES
    full = recorded and (tuple(arms), len(seeds), (*smaller, whole)) == (ARMS, SEEDS, SIZES)
    report: dict[str, Any] = {}
    sittings = Sittings(_RECORDS if recorded else None, add=options.add)
    for size in (whole, *([] if options.quick else smaller)):
        recipe = recipe_of(size, options)
        entries, own = (arms, seeds) if size == whole else (["v"], seeds[:FEW])
        results = sittings.compare(recipe, entries, own)
        console.print(table(results, recipe))
        for line in remarks(results, recipe):
            console.print(line, highlight=False)
        if size == whole:
            draw_curves(results, recipe)
            report |= summary(recipe, results)
            report["feedback_pairs"] = {str(size): report["arms"]["v"]["target_nll"]}
        else:
            report["feedback_pairs"][str(size)] = _target(results["arms"]["v"])
    file = _HERE / "results.json" if full else _ROOT / f"results-{variant(options)}.json"
    write_report("bench-shift", report, options.minutes, file, arms_markdown)


def require_data() -> None:
    """Write the problems by role if that was not done before. Raises UserError if GSM8K is missing."""
    if not all((_DATA / f"{role}.jsonl").exists() for role in ROLES):
        if not _TRAIN.exists():
            raise UserError(f"{_TRAIN} is missing: it is GSM8K's training split, see docs/comparison.md")
        print(f"problems by role: {write(_TRAIN, _DATA)}")


def recipe_of(size: int, options: argparse.Namespace) -> Recipe:
    """Return the recipe that all arms share, with `size` feedback pairs."""
    role = "validation" if options.validation else "test"
    settings = [
        f"name={size}-pairs-{variant(options)}",
        f"output={_ROOT}",
        f"feedback.sources.0.limit={size}",
        f"evaluation.sources.0.path={_DATA / role}.jsonl",
        f"budget.minutes={options.minutes}",
        "evaluation.points=1",
        "tracking.trackers=[]",
    ]
    return load_recipe("recipes/smollm2-gsm8k-shift.yaml", [*settings, *options.settings])


def _target(figures: dict[str, Any]) -> dict[str, float]:
    return {"mean": figures["answer_nll"], "low": figures["answer_nll_low"], "high": figures["answer_nll_high"]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = comparison_options("bench-shift", __doc__, ARMS, SEEDS, MINUTES)
    add_option(options)
    sizes = ",".join(map(str, SIZES))
    options.add_argument("--sizes", default=sizes, help="feedback pairs; all arms have the last (default: %(default)s)")
    return options


if __name__ == "__main__":
    command(main)
