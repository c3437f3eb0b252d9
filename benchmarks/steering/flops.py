"""`make bench-steering-flops`: arms after equal FLOPs in place of equal time, on test templates; resumable.

Every arm makes as many steps as the FLOPs of one-hot's steps pay for at the shapes of Qwen2.5-0.5B (`costs`), and its learning
rate falls over its own steps. --steps are those of one-hot, which is the first of --arms. The full run writes flops.json and
flops.md beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.command import command, parser_of, whole, write_report
from benchmarks.steering.__main__ import CONDITIONS, recipe_of
from benchmarks.steering.costs import Costs
from benchmarks.steering.learner import pretrained
from benchmarks.steering.runs import problems_of, result_of, retention_of
from benchmarks.table import interval, markdown_table
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.config import Recipe
from vpretrain.files import read_lines

ARMS, SEEDS, STEPS = ("one-hot", "v"), 10, 300
_ROOT, _HERE = Path("runs/steering"), Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then print and write the table."""
    parser = parser_of("bench-steering-flops", __doc__, conditions=CONDITIONS, arms=ARMS, seeds=SEEDS, steps=STEPS)
    parser.add_argument("--validation", action="store_true", help="evaluate on validation templates")
    parser.set_defaults(quick=False, seen=False, minutes=1.0)
    options = parser.parse_args(arguments)
    learner = pretrained(_ROOT)
    words = [str(options.steps), *(["validation"] if options.validation else []), *options.settings]
    root = _ROOT / "flops" / "-".join(words)
    found = {}
    for condition in options.conditions.split(","):
        recipe = recipe_of(condition, learner, options)
        changes = {"output": str(root / condition), "evaluation": recipe.evaluation.model_copy(update={"points": 0})}
        recipe = recipe.model_copy(update=changes)
        found[condition] = summary(recipe, options.arms.split(","), range(options.seeds), options.steps)
    retention, target = (
        [of[key] for arms in found.values() for of in arms.values() if key in of]
        for key in ("retention_minus_one_hot", "minus_one_hot")
    )
    correct(target)
    correct(retention)
    report = {"seeds": options.seeds, "conditions": found}
    file = (_HERE if whole(parser, options) else root) / "flops.json"
    write_report("bench-steering-flops", report, file, markdown)
    print(markdown(report))


def summary(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Make the runs of a condition and return each arm's figures; one-hot is the first arm and makes `steps` steps."""
    allowed = steps * Costs.of(recipe, arms[0]).step
    found: dict[str, Any] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        costs = Costs.of(recipe, arm)
        own = steps if arm == arms[0] else costs.affordable(allowed, recipe.value.every_steps)
        names = [f"{arm}-{own}.{seed}" for seed in seeds]
        runs[arm] = [
            result_of(recipe, name, [f"arm={arm}", f"seed={seed}", "budget.minutes=null", f"budget.steps={own}"])
            for name, seed in zip(names, seeds, strict=True)
        ]
        spent = [costs.spent(read_lines(Path(recipe.output) / name / "metrics.jsonl")) / allowed for name in names]
        found[arm] = {
            "steps": own,
            "flops": fmean(spent),
            "target_nll": fmean(run["answer_nll"] for run in runs[arm]),
            "mean_alpha": fmean(run["mean_alpha"] for run in runs[arm]),
        }
        if arm != arms[0]:
            found[arm]["minus_one_hot"] = paired_difference(problems_of(runs[arm]), problems_of(runs[arms[0]]))
            if len(seeds) > 1:
                retention, base = retention_of(runs[arm]), retention_of(runs[arms[0]])
                found[arm]["retention_minus_one_hot"] = paired_difference(retention, base)
    return found


def markdown(report: dict[str, Any]) -> str:
    """Format all conditions as one table, with 95 % intervals."""
    rows = [
        (
            condition,
            arm,
            f"{of['steps']}",
            f"{of['flops']:.3f}",
            f"{of['target_nll']:.3f}",
            interval(of.get("minus_one_hot"), "+"),
            interval(of.get("retention_minus_one_hot"), "+"),
            f"{of['mean_alpha']:.3f}",
        )
        for condition, arms in report["conditions"].items()
        for arm, of in arms.items()
    ]
    header = ("stream", "arm", "steps", "FLOPs", "target NLL", "minus one-hot", "retention", "mean alpha")
    return markdown_table(header, rows)


if __name__ == "__main__":
    command(main)
