"""`make bench-shift`: every arm and seed on the real learner, then V with smaller feedback sets; resumable. Prints tables and
writes results.json and results.md beside this file, or below runs/ where it is not the full benchmark. Finished runs are
recorded in runs.jsonl, unless --quick, --validation, settings or other minutes are given: with --add, the benchmark goes on
from those, after an interruption or on another machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command, whole, write_report
from benchmarks.comparison import chosen, comparison_options, show, variant
from benchmarks.shift.data import ROLES, write
from benchmarks.sittings import Sittings, add_option
from benchmarks.steering.__main__ import ARMS, summary, target_nll
from benchmarks.steering.table import arms_markdown, corrected
from vpretrain.compare.plots import draw_curves
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe

SEEDS, MINUTES, SIZES = 5, 2.0, (16, 64, 256, 1024)  # all arms use the last size
FEW = 3  # seeds of the smaller sizes
_TRAIN, _DATA = Path("data/gsm8k/train.jsonl"), Path("data/gsm8k-shift")
_ROOT, _HERE = Path("runs/shift"), Path(__file__).parent
_RECORDS = _HERE / "runs.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or a part of it."""
    options = parser().parse_args(arguments)
    require_data()
    arms, seeds = chosen(options, "one-hot")
    *smaller, largest = map(int, options.sizes.split(","))
    report: dict[str, Any] = {}
    sittings = Sittings.of(options, _RECORDS, MINUTES)
    for size in (largest, *([] if options.quick else smaller)):
        recipe = recipe_of(size, options)
        entries, own = (arms, seeds) if size == largest else (["v"], seeds[:FEW])
        results = sittings.compare(recipe, entries, own)
        show(results, recipe)
        if size == largest:
            draw_curves(results, recipe)
            report |= summary(recipe, results)
            report["feedback_pairs"] = {str(size): report["arms"]["v"]["target_nll"]}
        else:
            report["feedback_pairs"][str(size)] = target_nll(results["arms"]["v"])
    report = corrected({"": report})[""]
    file = _HERE / "results.json" if whole(parser(), options) else _ROOT / f"results-{variant(options)}.json"
    write_report("bench-shift", report, file, arms_markdown, options.minutes)


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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = comparison_options("bench-shift", __doc__, ARMS, SEEDS, MINUTES, sizes=SIZES)
    add_option(options)
    return options


if __name__ == "__main__":
    command(main)
