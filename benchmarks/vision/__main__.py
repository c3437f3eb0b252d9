"""`make bench-vision`: every arm and seed on a real ViT-S and generated scenes; resumable. Prints tables and writes
results.json and results.md beside this file, or below runs/ where it is not the full benchmark. Finished runs are recorded
in runs.jsonl, unless --quick, --validation, settings or other minutes are given: with --add, the benchmark goes on from
those, after an interruption or on another machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command, whole, write_report
from benchmarks.comparison import chosen, comparison_options, show, v_minus, variant
from benchmarks.sittings import Sittings, add_option
from benchmarks.vision.table import markdown
from vpretrain.compare.plots import draw_curves
from vpretrain.config import Recipe
from vpretrain.recipe import load_recipe

ARMS = ("fixed", "v", "v-paper", "random-mask", "random-feedback", "regulariser-only")
SEEDS, MINUTES = 5, 2.0
SCENES = {"validation": 6, "test": 7}  # seeds of the scenes on which the probes are tested; the quickstart's are 5
_KEPT = (
    "miou", "depth_rmse", "depth_abs_rel", "depth_delta_1", "accuracy", "retrieval_map",
    "steps", "images", "seconds", "images_per_s", "mean_tilt", "mean_mask",
)  # fmt: skip
_ROOT, _HERE = Path("runs/vision"), Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or a part of it."""
    parser = comparison_options("bench-vision", __doc__, ARMS, SEEDS, MINUTES)
    add_option(parser)
    options = parser.parse_args(arguments)
    recipe = recipe_of(options)
    results = Sittings.of(options, _HERE / "runs.jsonl", MINUTES).compare(recipe, *chosen(options, "fixed"))
    show(results, recipe)
    draw_curves(results, recipe)
    file = _HERE / "results.json" if whole(parser, options) else _ROOT / f"results-{variant(options)}.json"
    write_report("bench-vision", summary(results), file, markdown, options.minutes)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe that all arms share: the quickstart's, on other test scenes and for another time."""
    scenes = SCENES["validation" if options.validation else "test"]
    settings = [
        f"name={variant(options)}",
        f"output={_ROOT}",
        f"budget.minutes={options.minutes}",
        f"evaluation.test=[{{scenes: 96, cameras: 2, seed: {scenes}}}]",
        "evaluation.points=2",
        "tracking.trackers=[]",
    ]
    return load_recipe("recipes/quickstart-vision.yaml", [*settings, *options.settings])


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Return the arms' figures, and their differences with 95 % intervals over seeds and images."""
    differences = {key: results["differences"][key] for key in results["of"]}
    arms = {}
    for arm, figures in results["arms"].items():
        minus = {key: found[arm].get("fixed") for key, found in differences.items()}
        arms[arm] = {key: figures.get(key) for key in _KEPT} | {"minus_fixed": None if arm == "fixed" else minus}
    matched = results.get("matched", {}).get("images")
    if matched is not None:
        after = {key: matched[key]["differences"].get("v", {}) for key in results["of"]}
        matched = {"images": matched["at"], "v_minus": after}
    return {
        "seeds": len(results["seeds"]),
        "arms": arms,
        "v_minus": {key: v_minus(found) for key, found in differences.items()},
        "after_equal_images": matched,
    }


if __name__ == "__main__":
    command(main)
