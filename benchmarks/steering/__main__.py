"""`make bench-steering`: every condition, arm and seed; resumable. Prints tables and writes results.json and results.md
beside this file.

Runs with far fewer steps than the other seeds of their arm are listed, and no results are written until they were made again or
--keep-slow is given.
Anything but the full benchmark (--quick, other conditions, arms, seeds, minutes, settings, --validation, --seen) is written
below runs/ instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import command, whole, write_report
from benchmarks.comparison import begun, chosen, comparison_options, show, v_minus, variant
from benchmarks.fork import Fork, start_fork
from benchmarks.steering.curves import Curves
from benchmarks.steering.data import MANUAL_TEXTS, problems, stream_of
from benchmarks.steering.learner import LENGTH, pretrained
from benchmarks.steering.runs import LEAST, disturbed, retention_of
from benchmarks.steering.table import corrected, markdown
from vpretrain.compare.compare import compare
from vpretrain.compare.plots import draw_curves
from vpretrain.compare.results import START
from vpretrain.compare.statistics import interval, paired_difference
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_json
from vpretrain.inspection.probe import probe
from vpretrain.recipe import parse_recipe, with_overrides

CONDITIONS = ("clean", "off-topic", "noisy", "format-shift")
ARMS = (
    "one-hot", "v", "uniform", "self-distillation", "random-feedback", "selection", "token-weights", "v-learned", "v-paper",
    "mixed-in", "v-mixed-in",
)  # fmt: skip
SEEDS, MINUTES, PROBE_STEPS = 10, 0.35, 24
_ROOT = Path("runs/steering")
_HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or a part of it."""
    parser = comparison_options("bench-steering", __doc__, ARMS, SEEDS, MINUTES, conditions=CONDITIONS)
    parser.add_argument(
        "--seen", action="store_true", help="evaluate on other problems of the feedback's own templates"
    )
    parser.add_argument(
        "--keep-slow", action="store_true", help="write results in spite of slow runs, which are named there"
    )
    options = parser.parse_args(arguments)
    keep_slow, options.keep_slow = options.keep_slow, False  # the same benchmark, with its name
    # Before any computation here: a fork whose parent has a thread pool waits forever for threads that it does not have.
    torch.set_num_threads(1)
    learner = pretrained(_ROOT, **({"steps": 100} if options.quick else {}))
    arms, seeds = chosen(options, "one-hot")
    conditions: dict[str, dict[str, Any]] = {}
    for condition in options.conditions.split(","):
        recipe = recipe_of(condition, learner, options)
        results = compare(recipe, arms, seeds=seeds, resume=begun(recipe), start=start_fork).figures
        show(results, recipe)
        draw_curves(results, recipe)
        slow = disturbed(recipe, results)
        if slow:
            print(
                f"{condition}: runs with fewer than {LEAST:.0%} of their arm's median steps, perhaps slowed down by another "
                f"process; to make them again: rm -r {' '.join(map(str, slow))}; then this command"
            )
        probed = recipe.model_copy(update={"arm": "v", "name": f"{recipe.name}-probe"})
        conditions[condition] = summary(recipe, results) | {"probe": _probed(probed)}
        conditions[condition] |= {"slow": [run.name for run in slow]} if slow else {}
    slowed = [condition for condition, found in conditions.items() if "slow" in found]
    if slowed and not keep_slow:
        raise UserError(
            f"no results are written, as there are slow runs ({', '.join(slowed)}): make them again as said above, or give "
            "--keep-slow if it was the arm itself"
        )
    conditions = corrected(conditions)
    file = _HERE / "results.json" if whole(parser, options) else _ROOT / f"results-{variant(options)}.json"
    minutes = 0.1 if options.quick else options.minutes
    write_report("bench-steering", {"conditions": conditions}, file, markdown, minutes)


def recipe_of(condition: str, learner: Path, options: argparse.Namespace) -> Recipe:
    """Return the recipe that all arms of a condition share."""
    asked = problems("validation" if options.validation else "test", 3, 64)
    if options.seen:
        asked = problems("feedback", 20, 68) | {"skip": 8}  # sixty that are not among the feedback pairs
    data: dict[str, Any] = {
        "name": f"{condition}-{variant(options)}",
        "threads": 1,
        "output": str(_ROOT),
        "learner": {"name": str(learner)},
        "optimizer": {"lr": 5e-4, "warmup_fraction": 0.05, "schedule": "linear"},
        "stream": {"length": LENGTH, "batch_size": 4, "sources": stream_of(condition, _ROOT / "data")},
        "feedback": {"sources": [problems("feedback", 2, 1024)], "length": LENGTH, "batch_size": 2},
        "designer": {"hidden_size": 32, "layers": 1, "heads": 2, "top_k": 32, "lr": 1e-2, "alpha_start": 0.2},
        # A meta update takes half a step of this learner, so there is one every eighth step (the paper's r).
        "value": {"batch_size": 2, "length": LENGTH, "every_steps": 8},
        "budget": {"minutes": 0.1 if options.quick else options.minutes},
        "evaluation": {
            "sources": [asked],
            "retention": [{"builtin": "python-manual", "skip": MANUAL_TEXTS}],
            "problems": 64,
            "retention_tokens": 4096,
            "length": 2 * LENGTH,
            "batch_size": 16,
            "points": 2 if options.quick else 4,
        },
        "checkpoint": {"every_minutes": None},
        "tracking": {"trackers": []},
    }
    return parse_recipe(with_overrides(data, options.settings))


def summary(recipe: Recipe, results: dict[str, Any]) -> dict[str, Any]:
    """Return a condition's figures, with 95 % intervals over seeds and problems (retention: over seeds)."""
    arms: dict[str, Any] = {}
    differences, tempered = results["differences"]["nll"], results["differences"].get("nll_tempered", {})
    curves = Curves(recipe, results) if (recipe.evaluation.points or 0) > 1 else None
    retentions = {arm: retention_of(figures.get("runs", [figures])) for arm, figures in results["arms"].items()}
    for arm, figures in results["arms"].items():
        retention = retentions[arm]
        low, high = interval(retention) if len(retention) > 1 else (None, None)
        arms[arm] = {
            "target_nll": target_nll(figures),
            "retention_nll": {"mean": figures["retention_nll"], "low": low, "high": high},
            "top_1": figures.get("answer_top_1"),
            "steps": figures["steps"],
            "seconds": figures["seconds"],
        }
        if arm != "one-hot":
            arms[arm]["minus_one_hot"] = differences[arm]["one-hot"]
            arms[arm]["tempered_minus_one_hot"] = tempered.get(arm, {}).get("one-hot")
            if len(retention) > 1:
                arms[arm]["retention_minus_one_hot"] = paired_difference(retention, retentions["one-hot"])
        if arm != START:
            if curves is not None:
                arms[arm]["seconds_to_one_hot"] = curves.seconds_to_one_hot(arm)
            arms[arm] |= {key: figures[key] for key in figures if key.startswith("mean_")}
    return {"seeds": len(results["seeds"]), "arms": arms, "v_minus": v_minus(differences)}


def target_nll(figures: dict[str, Any]) -> dict[str, float]:
    """Return an arm's NLL on the target, with its 95 % interval."""
    return {"mean": figures["answer_nll"], "low": figures["answer_nll_low"], "high": figures["answer_nll_high"]}


def _probed(recipe: Recipe) -> dict[str, float | None]:
    file = recipe.directory / "probe.json"
    if not file.exists() or "gain" not in read_json(file):
        failed = Fork(probe, recipe, PROBE_STEPS).wait()
        if failed:
            raise UserError(f"the probe of {recipe.name} failed; the reason stands above")
    found = read_json(file)
    return {
        "pearson": found["full"]["pearson_r"],
        "slope": found["full"]["slope"],
        "pearson_subset": found["subset"]["pearson_r"],
        "pearson_seen": found["seen"]["pearson_r"],
        "pearson_gain": found["gain"]["pearson_r"],
        "slope_gain": found["gain"]["slope"],
    }


if __name__ == "__main__":
    command(main)
