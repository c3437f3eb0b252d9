"""`make bench-steering-flops`: arms after equal FLOPs and after equal tokens, in place of equal time, on test templates.
Resumable.

Every arm makes as many steps as the FLOPs of one-hot's steps pay for at the shapes of Qwen2.5-0.5B (`costs`), and `v` in other
runs as many steps as one-hot; the learning rate falls over a run's own steps. --steps are those of one-hot, which is the first
of --arms. The full run writes flops.json and flops.md beside this file.
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
from benchmarks.table import filled_table, interval, markdown_table
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.config import Recipe
from vpretrain.files import read_lines

ARMS, SEEDS, STEPS = ("one-hot", "v"), 10, 300
EQUAL_TOKENS = ", equal tokens"
_COLUMNS = (
    "stream", "arm", "steps", "FLOPs", "target NLL", "minus one-hot", "after one temperature each", "top-1", "retention",
    "mean alpha",
)  # fmt: skip
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
    for key in ("minus_one_hot", "tempered_minus_one_hot", "retention_minus_one_hot"):
        correct([of[key] for arms in found.values() for of in arms.values() if key in of])
    report = {"seeds": options.seeds, "conditions": found}
    file = (_HERE if whole(parser, options) else root) / "flops.json"
    write_report("bench-steering-flops", report, file, markdown)
    print(markdown(report))


def summary(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Make the runs of a condition and return the figures of one-hot, which is the first arm and makes `steps` steps, and of
    each other arm after equal FLOPs, of `v` also after as many steps, and so equal tokens."""
    one_hot, others = arms[0], arms[1:]
    allowed = steps * Costs.of(recipe, one_hot).step
    costs = {arm: Costs.of(recipe, arm) for arm in arms}
    planned = {one_hot: (one_hot, steps)}
    for arm in others:
        planned[arm] = arm, costs[arm].affordable(allowed, recipe.value.every_steps)
        if arm == "v":
            planned[arm + EQUAL_TOKENS] = arm, steps
    found: dict[str, Any] = {}
    base: list[dict[str, Any]] = []
    for name, (arm, own) in planned.items():
        directories = [f"{arm}-{own}.{seed}" for seed in seeds]
        runs = [
            result_of(recipe, directory, [f"arm={arm}", f"seed={seed}", "budget.minutes=null", f"budget.steps={own}"])
            for directory, seed in zip(directories, seeds, strict=True)
        ]
        metrics = (Path(recipe.output) / directory / "metrics.jsonl" for directory in directories)
        found[name] = {
            "steps": own,
            "flops": fmean(costs[arm].spent(read_lines(file)) / allowed for file in metrics),
            "target_nll": fmean(run["answer_nll"] for run in runs),
            "top_1": fmean(run["answer_top_1"] for run in runs),
            "mean_alpha": fmean(run["mean_alpha"] for run in runs),
        }
        if not base:
            base = runs
            continue
        for key, of_problem in (("minus_one_hot", "nll"), ("tempered_minus_one_hot", "nll_tempered")):
            found[name][key] = paired_difference(problems_of(runs, of_problem), problems_of(base, of_problem))
        if len(seeds) > 1:
            retention = paired_difference(retention_of(runs), retention_of(base))
            found[name]["retention_minus_one_hot"] = retention
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
            interval(of.get("tempered_minus_one_hot"), "+"),
            f"{of['top_1']:.1%}" if "top_1" in of else "-",
            interval(of.get("retention_minus_one_hot"), "+"),
            f"{of['mean_alpha']:.3f}",
        )
        for condition, arms in report["conditions"].items()
        for arm, of in arms.items()
    ]
    return filled_table(_COLUMNS, rows)


def by_arm(report: dict[str, Any]) -> str:
    """Format each arm's NLL minus that of one-hot after equal FLOPs, per stream."""
    conditions = report["conditions"]
    first = next(iter(conditions.values()))
    arms = [arm for arm, of in first.items() if "minus_one_hot" in of and EQUAL_TOKENS not in arm]
    rows = [(arm, *(interval(found[arm]["minus_one_hot"], "+") for found in conditions.values())) for arm in arms]
    return markdown_table(("arm", *conditions), rows)


if __name__ == "__main__":
    command(main)
