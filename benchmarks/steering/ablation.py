"""`make bench-steering-ablation`: vary one setting at a time, on validation templates, at equal steps; resumable.

Each variant is run on the two conditions in which V can gain, with every seed, from the benchmark's own recipe, and compared
with that recipe and with one-hot after equally many steps, paired over problems and seeds. The full run writes ablation.json
beside this file; ablation-designer.json has the designer's that came before the exact task. Test templates are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from benchmarks.command import command, console, parser_of, whole, write_report
from benchmarks.steering.__main__ import recipe_of
from benchmarks.steering.learner import pretrained
from benchmarks.steering.runs import problems_of, result_of
from benchmarks.steering.table import ablation_markdown
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.config import Recipe

STEPS, SEEDS, STREAMS = 200, 2, ("noisy", "format-shift")
_EVERY_STEP = ["value.every_steps=1", "value.batch_size=4", "value.feedback_every=8"]  # four rows: all tokens of a step
VARIANTS: dict[str, list[str]] = {
    "one-hot": ["arm=one-hot"],
    "v": ["arm=v"],
    "v-learned": ["arm=v-learned"],
    "v-learned with S = all": ["arm=v-learned", "designer.subset=all"],
    "v-learned at every token": ["arm=v-learned", *_EVERY_STEP],
    "v-learned at every token with S = all": ["arm=v-learned", "designer.subset=all", *_EVERY_STEP],
    "v at every step": ["arm=v", *_EVERY_STEP],
    "strength 1 from the first step": ["value.strength=1"],
    "divergence 0.05": ["value.divergence=0.05"],
    "divergence 0.4": ["value.divergence=0.4"],
    "alpha0 0.1": ["value.alpha0=0.1"],
    "alpha0 0.005": ["value.alpha0=0.005"],
    "S = last block": ["value.subset=last-1"],
    "S = all": ["value.subset=all"],
    "metric identity": ["value.metric=identity"],
    "dot product": ["value.align=dot"],
    "4 pairs per update": ["feedback.batch_size=4"],
    "1 pair per update": ["feedback.batch_size=1"],
    "every 4 steps": ["value.every_steps=4"],
    "every 16 steps": ["value.every_steps=16"],
}
_BESIDE = ("v", "one-hot")  # the variants that all are compared with
_ROOT, _HERE = Path("runs/steering"), Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print and write the table."""
    parser = parser_of(
        "bench-steering-ablation", __doc__, conditions=STREAMS, variants=VARIANTS, seeds=SEEDS, steps=STEPS
    )
    parser.set_defaults(quick=False, seen=False, validation=True, minutes=1.0)
    options = parser.parse_args(arguments)
    variants, seeds = options.variants.split(","), range(options.seeds)
    learner = pretrained(_ROOT)
    report: dict[str, Any] = {"conditions": {}}
    for condition in options.conditions.split(","):
        recipe = recipe_of(condition, learner, options)
        directory = _ROOT / "ablation" / "-".join([condition, str(options.steps), *options.settings])
        changes = {
            "output": str(directory),
            "budget": recipe.budget.model_copy(update={"steps": options.steps, "minutes": None}),
            "evaluation": recipe.evaluation.model_copy(update={"points": 0}),
        }
        recipe = recipe.model_copy(update=changes)
        runs = {v: [_run(recipe, v, seed) for seed in seeds] for v in variants}
        report["conditions"][condition] = _summary(runs)
        console().print(_table(condition, report["conditions"][condition]))
    for arm in _BESIDE:
        correct(
            found[f"minus_{arm}"]
            for variants_of in report["conditions"].values()
            for variant, found in variants_of.items()
            if variant != arm and arm in variants_of
        )
    report |= {"steps": options.steps, "seeds": options.seeds}
    file = _HERE / "ablation.json" if whole(parser, options) else _ROOT / "ablation" / "results.json"
    write_report("bench-steering-ablation", report, file, ablation_markdown if "v" in variants else None)


def _run(recipe: Recipe, variant: str, seed: int) -> dict[str, Any]:
    name = f"{''.join(c if c.isalnum() or c in '._-' else '-' for c in variant)}.{seed}"
    return result_of(recipe, name, [f"seed={seed}", *VARIANTS[variant]])


def _summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    nll = {variant: problems_of(of_v) for variant, of_v in runs.items()}
    return {
        variant: {
            "validation_nll": _mean(of_v, "answer_nll"),
            "retention_nll": _mean(of_v, "retention_nll"),
            **{f"minus_{arm}": paired_difference(nll[variant], nll[arm]) for arm in _BESIDE if arm in nll},
            "seconds": _mean(of_v, "seconds"),
            "mean_alpha": _mean(of_v, "mean_alpha"),
        }
        for variant, of_v in runs.items()
    }


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return fmean(run[key] for run in runs)


def _table(condition: str, summary: dict[str, Any]) -> Table:
    view = Table(title=f"{condition}, validation templates")
    for column in ("variant", "NLL", "minus v", "minus one-hot", "retention", "alpha", "seconds"):
        view.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    for variant, found in summary.items():
        differences = [found.get(f"minus_{other}") for other in _BESIDE]
        view.add_row(
            variant,
            f"{found['validation_nll']:.4f}",
            *("-" if d is None else f"{d['mean']:+.4f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in differences),
            f"{found['retention_nll']:.4f}",
            f"{found['mean_alpha']:.3f}",
            f"{found['seconds']:.1f}",
        )
    return view


if __name__ == "__main__":
    command(main)
