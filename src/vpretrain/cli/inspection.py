"""Commands that show what runs did, and where the time of a step goes."""

from __future__ import annotations

from pathlib import Path

from vpretrain.cli.command import Options, argument, command, count, recipe_command
from vpretrain.cli.terminal import hush_libraries, print_results, size_text
from vpretrain.config import Recipe
from vpretrain.console import output

_SHOWN = 8  # parameters that a replay lists


@recipe_command(
    "vpretrain probe recipes/quickstart.yaml --steps 20 arm=v", count("--steps", 24, "learner steps", least=3)
)
def probe(recipe: Recipe, options: Options) -> None:
    """Compare the predicted with the measured change of the feedback loss, step by step."""
    from vpretrain.inspection.probe import PREDICTIONS, draw_probe, probe, shown

    hush_libraries()
    results = probe(recipe, options.steps)
    print(
        f"{recipe.arm}: drop of the feedback loss, predicted by one batch, against realised on another, {options.steps} steps"
    )
    for which, (*_, title) in PREDICTIONS.items():
        print(f"{title:>24}  {shown(results[which])}")
    if results["skipped"]:
        print(
            f"steps left out, as the two batches had no gradient of the reward in a common domain: {results['skipped']}"
        )
    print_results(recipe.directory / "probe.json", draw_probe, results, recipe.directory / "probe.png")


@recipe_command(
    "vpretrain profile recipes/quickstart.yaml --steps 16 arm=v",
    count("--steps", 16, "learner steps, rounded up to whole periods of value.every_steps"),
)
def profile(recipe: Recipe, options: Options) -> None:
    """Show where the time of a step goes, and what V adds to ordinary pretraining."""
    from vpretrain.inspection.profile import draw_profile, profile, profile_table

    hush_libraries()
    results = profile(recipe, options.steps)
    output().print(profile_table(results))
    added, unit = results["added"], results["unit"].removesuffix("s")
    print(f"added to ordinary pretraining: {added['microseconds']:.2f} microseconds per {unit}, {added['ratio']:.1%}")
    print(f"meta updates: {results['meta_share']:.1%} of the time of a step")
    print_results(recipe.directory / "profile.json", draw_profile, results, recipe.directory / "profile.png")


@command(
    "vpretrain gate runs/quickstart/v --batches 16",
    argument("run", "RUN", "directory of a run of v, or of another arm that follows the feedback"),
    count("--batches", 16, "micro-batches of its stream to look at"),
)
def gate(options: Options) -> None:
    """Show which tokens a run steers: the gate alpha by kind of token."""
    from vpretrain.language.inspection.gate import draw_gate, gate, gate_table

    hush_libraries()
    directory = Path(options.run)
    results = gate(directory, options.batches)
    output().print(gate_table(results))
    print_results(directory / "gate.json", draw_gate, results, directory / "gate.png")


@command(
    "vpretrain report runs/quickstart\n  vpretrain report runs/mine runs/quickstart --output report.html",
    argument(
        "runs",
        "RUN_OR_COMPARE",
        "directory of a run or of a comparison; several comparisons also come side by side, with their differences",
        nargs="+",
    ),
    argument(
        "--output",
        "FILE",
        "the file (default: report.html in the directory; of several comparisons report-with-OTHER.html in the first)",
    ),
)
def report(options: Options) -> None:
    """Write one HTML file on runs and comparisons, with verdict, curves, cost and settings."""
    from vpretrain.report.across import across
    from vpretrain.report.collect import collect
    from vpretrain.report.page import write_page
    from vpretrain.report.verdict import verdict_lines

    studies = [collect(Path(run)) for run in options.runs]
    together = across(studies)
    first, *others = map(Path, options.runs)
    name = "-with-".join(["report", *(run.absolute().name for run in others)])
    file = Path(options.output or first / f"{name}.html")
    write_page(studies, together, file)
    lines = [line for study in studies for line in (f"{study.recipe.name}:", *verdict_lines(study))]
    for line in [*lines, *(together.lines if together else ())]:
        output().print(line, highlight=False, markup=False)
    print(f"report: {file} ({size_text(file.stat().st_size)}; it needs nothing else)")


@command(
    "vpretrain replay runs/mine/replay/step-00000042",
    argument("step", "STEP", "directory that the run named when it stopped"),
)
def replay(options: Options) -> int:
    """Run a step again that failed with a NaN or infinite loss, gradient or value."""
    from vpretrain.run.replay import replay

    hush_libraries()
    found = replay(Path(options.step))
    print(f"step {found['step']}: {found['was']}")
    print(f"made again: {found['is'] or 'every number is finite'}")
    if not found["batch"]:
        print("the stream gives another batch than it was: its data have changed")
    if found["not_finite"]:
        print("not finite in the gradient of (the last first):")
        for name, count in list(reversed(found["not_finite"].items()))[:_SHOWN]:
            print(f"  {name}: {count:,} numbers")
        if len(found["not_finite"]) > _SHOWN:
            print(f"  and {len(found['not_finite']) - _SHOWN} more parameters")
    return int(found["is"] != found["was"])
