"""`make bench-vision`: every arm and seed on a real ViT-S and generated scenes; resumable. Prints tables and writes
results.json and results.md beside this file, or below runs/ where it is not the full benchmark. Finished runs are recorded
in runs.jsonl, unless --quick, --validation, settings or other minutes are given: with --add, the benchmark goes on from
those, after an interruption or on another machine. At the end a few steps of v are timed by phase, with each seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command, whole, write_report
from benchmarks.comparison import chosen, comparison_options, show, v_minus, variant
from benchmarks.sittings import Sittings, add_option
from benchmarks.vision import bars
from benchmarks.vision.settings import WITH_PAPER
from benchmarks.vision.table import markdown
from vpretrain.compare.plots import draw_curves
from vpretrain.config import Recipe
from vpretrain.inspection.profile import profile
from vpretrain.recipe import load_recipe, parse_recipe, with_overrides

# A control has the settings of what it controls; random-mask takes v-paper's keep ratio, and makes no meta updates.
ARMS = ("fixed", "v", f"v-paper{WITH_PAPER}", "random-mask", "random-feedback", f"regulariser-only{WITH_PAPER}")
SEEDS, MINUTES = 5, 2.0
SCENES = {"validation": 6, "test": 9}  # seeds of the scenes on which the probes are tested; the quickstart's are 5
_KEPT = (
    "miou", "depth_rmse", "depth_abs_rel", "depth_delta_1", "accuracy", "retrieval_map",
    "steps", "images", "seconds", "images_per_s", "mean_tilt", "mean_mask",
)  # fmt: skip
_PERIODS = 4  # of value.every_steps, timed with each seed
_ROOT, _HERE = Path("runs/vision"), Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or a part of it."""
    parser = comparison_options("bench-vision", __doc__, ARMS, SEEDS, MINUTES)
    add_option(parser)
    options = parser.parse_args(arguments)
    recipe = recipe_of(options)
    arms, seeds = chosen(options, "fixed")
    results = Sittings.of(options, _HERE / "runs.jsonl", MINUTES).compare(recipe, arms, seeds)
    show(results, recipe)
    draw_curves(results, recipe)
    added = added_by_v(recipe, seeds) if "v" in arms else []
    file = _HERE / "results.json" if whole(parser, options) else _ROOT / f"results-{variant(options)}.json"
    write_report("bench-vision", summary(results, added), file, markdown, options.minutes)


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


def added_by_v(recipe: Recipe, seeds: Sequence[int]) -> list[float]:
    """Time steps of v with each seed, with the whole tilt and without judgements of its strength, as in `make bench-speed`.

    Returns:
        The time of tangent, tilt and meta update over that of the phases that fixed has too.
    """
    # A step takes as long with a head that was not fitted.
    settings = ["arm=v", "value.strength=1.0", "learner.dino.warm_up_steps=0", f"name={recipe.name}-profile"]
    added = []
    for seed in seeds:
        data = with_overrides(recipe.model_dump(mode="json"), [*settings, f"seed={seed}"])
        timed = profile(parse_recipe(data), _PERIODS * recipe.value.every_steps)
        added.append(timed["added"]["ratio"])
    return added


def summary(results: dict[str, Any], added: Sequence[float] = ()) -> dict[str, Any]:
    """Return the arms' figures, their differences with 95 % intervals over seeds and images, and what was to be shown.

    `added` is `added_by_v`, if that was measured.
    """
    differences = {key: results["differences"][key] for key in results["of"]}
    arms = {}
    for arm, figures in results["arms"].items():
        minus = {key: found[arm].get("fixed") for key, found in differences.items()}
        arms[arm] = {key: figures.get(key) for key in _KEPT} | {"minus_fixed": None if arm == "fixed" else minus}
    matched = {axis: _after(found, results["of"]) for axis, found in results.get("matched", {}).items()}
    return {
        "seeds": len(results["seeds"]),
        "arms": arms,
        "v_minus": {key: v_minus(found) for key, found in differences.items()},
        "after_equal": matched,
        "bars": _bars(matched, added),
    }


def _after(matched: dict[str, Any], metrics: Iterable[str]) -> dict[str, Any]:
    """Return each arm's metrics per image at an equal number of seconds or images, and their differences from fixed."""
    own = {key: matched[key] for key in metrics}
    arms = next(iter(own.values()))["arms"]
    return {
        "at": matched["at"],
        "arms": {
            arm: {
                "mean": {key: found["arms"][arm] for key, found in own.items()},
                "minus_fixed": {key: found["differences"][arm].get("fixed") for key, found in own.items()},
            }
            for arm in arms
        },
    }


def _bars(matched: dict[str, Any], added: Sequence[float]) -> dict[str, Any]:
    """Judge what was to be shown, as far as v and fixed were compared."""
    found = {
        f"equal {axis}": bars.quality(after["arms"]["v"]["minus_fixed"])
        for axis, after in matched.items()
        if {"v", "fixed"} <= after["arms"].keys()
    }
    return found | ({"images/s within the run": bars.speed(added)} if added else {})


if __name__ == "__main__":
    command(main)
