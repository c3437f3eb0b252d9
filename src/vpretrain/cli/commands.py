"""The commands; their docstrings are their help. Heavy imports are inside, so that help and error messages appear at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpretrain import console
from vpretrain.errors import UserError
from vpretrain.files import check_writable, write_whole
from vpretrain.modality import MODALITIES, modality_of
from vpretrain.plain import read_yaml
from vpretrain.recipe import load_recipe, parse_recipe, settings_help
from vpretrain.schema import FILE, schema_line
from vpretrain.types import Json, Keywords

_SHOWN = 8  # parameters that a replay lists
_QUESTIONS = {
    "learner": "Learner (a hub name, a directory of save_pretrained, or pypi:...): ",
    "stream": "Stream, what it trains on (a file, a folder, a glob or a URL): ",
    "feedback": "Feedback, verified examples that steer it: ",
    "evaluation": "Evaluation, held-out examples (empty: a part of the feedback): ",
}


def run(options: argparse.Namespace) -> None:
    """Run one arm."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.run import run_recipe

    _hush_libraries()
    result = run_recipe(recipe, **_chosen(options, "resume", "overwrite", "accept_changes", "until"))
    if int(os.environ.get("RANK", "0")):
        return  # rank 0 prints
    _print_figures(result.figures)
    print(f"results: {recipe.directory / 'result.json'}   log: {recipe.directory / 'metrics.jsonl'}")
    if result.steps:
        print(f"model: {recipe.directory / 'model'} (from_pretrained loads it)")
    _print_next(recipe.directory)


def watch(options: argparse.Namespace) -> None:
    """Watch a run or a comparison in progress: curves, budget left, speed, memory, last evaluation."""
    from vpretrain.report.watch import watch

    watch(Path(options.run), _console(), once=options.once or not sys.stdout.isatty())


def settings(options: argparse.Namespace) -> None:
    """List settings with their defaults and meanings."""
    print(settings_help(options.prefix))


def runs(options: argparse.Namespace) -> None:
    """List the runs and comparisons below a directory: state, arm, budget used, result."""
    from vpretrain.report.listing import listing, listing_table

    rows = listing(Path(options.directory))
    if rows:
        _console().print(listing_table(rows))
    else:
        print(f"no runs below {options.directory}")


def clean(options: argparse.Namespace) -> None:
    """Free the disk of old checkpoints, after asking; what a resume or an export needs stays."""
    from vpretrain.run.clean import clean, removable

    found = removable(Path(options.directory), finished=options.finished)
    if not found:
        print(f"nothing to remove below {options.directory}")
        return
    for one in found:
        print(f"{_size(one.size):>10}  {one.run}: {', '.join(path.name for path in one.paths)}")
    print(f"{_size(sum(one.size for one in found)):>10}  in all")
    if not options.yes:
        if not _can_ask():
            raise UserError(
                "nothing was removed, as there is no terminal to ask in: add --yes to remove what is listed"
            )
        answer = ""
        with contextlib.suppress(EOFError):  # Ctrl-D
            answer = input("Remove these? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    print(f"freed {_size(clean(found))}")


def compare(options: argparse.Namespace) -> None:
    """Run several arms under one budget and compare them with the untouched learner."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.compare.compare import compare
    from vpretrain.compare.entry import split_entries
    from vpretrain.compare.plots import draw_curves, draw_pass_at_k, draw_settings
    from vpretrain.compare.results import START, run_name
    from vpretrain.report.collect import collect
    from vpretrain.report.verdict import verdict

    arms = [recipe.baseline, "v"] if options.arms is None else split_entries(options.arms)
    results = compare(recipe, arms, **_chosen(options, "seeds", "rounds", "resume", "overwrite"))
    out = _console()
    out.print(results)
    for line in results.remarks:
        out.print(line, highlight=False, markup=False, style="yellow" if line.startswith("warning") else None)
    directory = recipe.directory
    out.print(verdict(collect(directory)), highlight=False, markup=False, style="bold")
    curves = draw_curves(results.figures, recipe)
    print(f"results: {directory / 'results.json'}")
    print(f"curves:  {curves or 'not drawn; pip install matplotlib'}")
    for picture in (draw_settings(results.figures, recipe), draw_pass_at_k(results.figures, recipe)):
        if picture is not None:
            print(f"picture: {picture}")
    trained = [arm for arm in results.arms if arm != START]
    for name in (run_name(arm, seed, results.seeds) for arm in trained for seed in results.seeds):
        print(f"model:   {directory / name / 'model'}")
        if (sheet := directory / name / "views.png").exists():
            print(f"views:   {sheet}")
    _print_next(directory)


def pareto(options: argparse.Namespace) -> None:
    """Run V-pretraining at several weights of the feedback, and draw what one objective costs the other."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.compare.pareto import draw_pareto, pareto, pareto_table

    points = [point.split(",") for point in options.point]
    for point in points:
        load_recipe(options.recipe, [*options.overrides, *point])  # errors show before the long work
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-pareto"})  # avoids a comparison of this name
    results = pareto(recipe, points, **_chosen(options, "resume", "overwrite"))
    _console().print(pareto_table(results, recipe))
    _print_results(recipe.directory / "pareto.json", draw_pareto(results, recipe))


def posttrain(options: argparse.Namespace) -> None:
    """Compare paths of several trainings under one budget, such as V-pretraining, then GRPO."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.compare.entry import split_entries
    from vpretrain.compare.posttrain import draw_posttrain, posttrain, posttrain_table

    recipe = recipe.model_copy(update={"name": f"{recipe.name}-posttrain"})  # avoids a comparison of this name
    results = posttrain(recipe, split_entries(options.paths), **_chosen(options, "seeds", "resume", "overwrite"))
    _console().print(posttrain_table(results, recipe))
    _print_results(recipe.directory / "posttrain.json", draw_posttrain(results, recipe))


def sweep(options: argparse.Namespace) -> None:
    """Search for settings under a fixed budget per trial; trials that fall behind end early."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.compare.sweep import draw_sweep, load_space, sweep, sweep_table

    space = load_space(options.space)
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-sweep-{recipe.arm}"})
    results = sweep(recipe, space, **_chosen(options, "trials", "rungs", "objective", "resume", "overwrite"))
    _console().print(sweep_table(results))
    for field, importance in results["importances"].items():
        print(f"{importance:>7.1%}  {field}")
    directory = recipe.directory
    _print_results(directory / "sweep.json", draw_sweep(results, directory / "sweep.png"))
    model = directory / f"trial-{results['best']}" / "model"
    print(f"best:    {directory / 'best.yaml'}   model: {model}")


def probe(options: argparse.Namespace) -> None:
    """Compare the predicted with the measured change of the feedback loss, step by step."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.inspection.probe import PREDICTIONS, draw_probe, probe, shown

    _hush_libraries()
    results = probe(recipe, options.steps)
    print(
        f"{recipe.arm}: drop of the feedback loss, predicted by one batch, against realised on another, {options.steps} steps"
    )
    for which, (*_, title) in PREDICTIONS.items():
        print(f"{title:>24}  {shown(results[which])}")
    _print_results(recipe.directory / "probe.json", draw_probe(results, recipe.directory / "probe.png"))


def profile(options: argparse.Namespace) -> None:
    """Show where the time of a step goes, and what V adds to ordinary pretraining."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.inspection.profile import draw_profile, profile, profile_table

    _hush_libraries()
    results = profile(recipe, options.steps)
    _console().print(profile_table(results))
    added, unit = results["added"], results["unit"].removesuffix("s")
    print(f"added to ordinary pretraining: {added['microseconds']:.2f} microseconds per {unit}, {added['ratio']:.1%}")
    print(f"meta updates: {results['meta_share']:.1%} of the time of a step")
    _print_results(recipe.directory / "profile.json", draw_profile(results, recipe.directory / "profile.png"))


def gate(options: argparse.Namespace) -> None:
    """Show which tokens a run steers: the gate alpha by kind of token."""
    from vpretrain.language.inspection.gate import draw_gate, gate, gate_table

    _hush_libraries()
    directory = Path(options.run)
    results = gate(directory, options.batches)
    _console().print(gate_table(results))
    _print_results(directory / "gate.json", draw_gate(results, directory / "gate.png"))


def report(options: argparse.Namespace) -> None:
    """Write one HTML file on runs and comparisons, with verdict, curves, cost and settings."""
    from vpretrain.report.across import across
    from vpretrain.report.collect import collect
    from vpretrain.report.page import write_page
    from vpretrain.report.verdict import verdict

    studies = [collect(Path(run)) for run in options.runs]
    together = across(studies)
    file = Path(options.output or Path(options.runs[0], "report.html"))
    write_page(studies, together, file)
    lines = [f"{study.recipe.name}: {verdict(study)}" for study in studies]
    for line in [*lines, *(together.lines if together else ())]:
        _console().print(line, highlight=False, markup=False)
    print(f"report: {file} ({_size(file.stat().st_size)}; it needs nothing else)")


def replay(options: argparse.Namespace) -> int:
    """Run a step again that failed with a NaN or infinite loss, gradient or value."""
    from vpretrain.run.replay import replay

    _hush_libraries()
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


def init(options: argparse.Namespace) -> None:
    """Write a recipe for your own data: templates are guessed from columns, and roles kept apart."""
    path = Path(options.recipe)
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} exists: give the recipe another name, or --overwrite")
    check_writable(path, "its name")
    answers = _answers(options)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "mine"
    _hush_libraries()
    modality = next((one for one in MODALITIES.values() if one.reads(answers["stream"])), MODALITIES["language"])
    body = modality.draft(name, **answers)
    head = [
        schema_line(FILE.as_uri()),
        "# Written by `vpretrain init`. Paths count from the directory in which vpretrain is started.",
        f"#   vpretrain check {path}      finds mistakes and estimates the memory",
        f"#   vpretrain inspect {path}    shows what the learner sees, with the loss mask",
        f"#   vpretrain compare {path}    runs ordinary training and V-pretraining",
    ]
    text = "\n".join(head) + f"\n{body}"
    parse_recipe(read_yaml(text, str(path)), origin=str(path))
    write_whole(path, text)
    print(f"recipe:  {path}")
    print(f"next:    vpretrain check {path}")


def _answers(options: argparse.Namespace) -> dict[str, Any]:
    """What a recipe cannot be without, from the options; in a terminal the rest is asked for."""
    answers = _chosen(options, *_QUESTIONS)
    if _can_ask():
        with contextlib.suppress(EOFError):  # no more answers
            for key in (key for key, given in answers.items() if given is None):
                answers[key] = input(_QUESTIONS[key]).strip() or None
    missing = [f"--{key}" for key in ("learner", "stream", "feedback") if not answers[key]]
    if missing:
        raise UserError(f"init needs {', '.join(missing)} (--evaluation may be left out)")
    return answers


def check(options: argparse.Namespace) -> None:
    """Find mistakes before the long work, and estimate the memory."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.run.tracking import require

    require(recipe.tracking)
    _hush_libraries()
    for line in modality_of(recipe).check(recipe):
        print(line)


def estimate(options: argparse.Namespace) -> None:
    """Estimate memory, communication and time of a recipe on many GPUs, and what to shard."""
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.scaling.estimate import DEVICES, estimate
    from vpretrain.scaling.tables import estimate_remarks, estimate_table

    _hush_libraries()
    own = _chosen(options, "tflops", "fp32_tflops", "memory_gib")
    device = replace(DEVICES[options.device], **{name: value for name, value in own.items() if value is not None})
    how = _chosen(options, "gpus_per_node", "bandwidth_gbs", "utilisation", "latency_us")
    found = estimate(recipe, options.world_size, device=device, **how)
    if options.json:
        print(json.dumps(found.as_json() | {"remarks": estimate_remarks(found)}, indent=1))
    else:
        _console().print(estimate_table(found))
        print("\n".join(estimate_remarks(found)))


def inspect(options: argparse.Namespace) -> None:
    """Show examples of the stream and the feedback, and the tasks made of them."""
    recipe = load_recipe(options.recipe, options.overrides)
    _hush_libraries()
    modality_of(recipe).inspect(recipe, examples=options.examples, positions=options.positions)


def doctor(options: argparse.Namespace) -> int:
    """Compare the value engines, on a recipe as its run would use them, or on a learner with random data."""
    recipe = load_recipe(options.recipe, options.overrides) if options.recipe else None
    from vpretrain.inspection.doctor import diagnose, diagnose_recipe, failures, report

    _hush_libraries()
    diagnosis = diagnose(options.learner) if recipe is None else diagnose_recipe(recipe)
    print(json.dumps(diagnosis, indent=1) if options.json else report(diagnosis))
    for line in failures(diagnosis):
        print(f"vpretrain: {line}", file=sys.stderr)
    return 1 if failures(diagnosis) else 0


def decontaminate(options: argparse.Namespace) -> None:
    """Copy a stream without the examples that are near-duplicates of evaluation problems."""
    from vpretrain.language.data.decontaminate import decontaminate, decontaminate_table

    _hush_libraries()
    output = Path(options.output)
    settings = {"n": options.ngram, "threshold": options.jaccard, "overwrite": options.overwrite}
    report = decontaminate(options.stream, options.against, output, **settings)
    _console().print(decontaminate_table(report))
    print(f"kept:    {output}/stream-*.jsonl" + (f"   recipe: {output / 'recipe.yaml'}" if report["recipe"] else ""))
    print(f"dropped: {output / 'dropped.jsonl'}   report: {output / 'report.json'}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a model on a recipe's evaluation, or on standard benchmarks."""
    if options.recipe is None and options.tasks is None:
        raise UserError("say what to measure on: a recipe, --tasks gsm8k,mmlu or both")
    if options.tasks is not None:
        os.environ["TQDM_DISABLE"] = ""  # the harness shows its own progress; tqdm reads this at its first import
    if options.output is not None:
        check_writable(Path(options.output), "--output")
    results: Json = {}
    if options.recipe is not None:
        recipe = load_recipe(options.recipe, options.overrides)
        _hush_libraries()
        results = modality_of(recipe).measure(recipe, options.model)
        if not options.json:
            _print_figures(results)
    if options.tasks is not None:
        results |= _run_tasks(options)
    if options.output is not None:
        Path(options.output).write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")
        print(f"results: {options.output}", file=sys.stderr)
    if options.json:
        print(json.dumps(results, indent=1, default=str))


def _run_tasks(options: argparse.Namespace) -> Json:
    from vpretrain.language.evaluation.harness import run_tasks, tasks_table

    _hush_libraries()
    settings = _chosen(options, "shots", "limit", "include", "batch_size", "run_code")
    results = run_tasks(options.model, options.tasks.split(","), **settings)
    if not options.json:
        _console().print(tasks_table(results))
    return results


def export(options: argparse.Namespace) -> None:
    """Write the learner of a run for from_pretrained (LoRA: merged, and the adapter), with a model card."""
    if options.private and options.push_to_hub is None:
        raise UserError("--private is about --push-to-hub: give both")
    from vpretrain.run.export import check_hub_name, export, push

    _hush_libraries()
    if options.push_to_hub is not None:
        check_hub_name(options.push_to_hub)
    export(options.run, options.directory)
    print(f"{options.directory}: from_pretrained loads it; its card is README.md")
    if options.push_to_hub is not None:
        print(f"uploaded: {push(options.directory, options.push_to_hub, private=options.private)}")


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # started with <&- there is none


def _chosen(options: argparse.Namespace, *names: str) -> Keywords:
    return {name: getattr(options, name) for name in names}


def _size(count: int) -> str:
    units = {2**30: "GiB", 2**20: "MiB", 1: "bytes"}
    unit = next(size for size in units if count >= size or size == 1)
    return f"{count / unit:,.1f} {units[unit]}" if unit > 1 else f"{count:,} bytes"


def _print_results(results: Path, picture: Path | None) -> None:
    print(f"results: {results}   picture: {picture or 'not drawn; pip install matplotlib'}")


def _print_next(directory: Path) -> None:
    print(f"next:    vpretrain report {directory} (one HTML file of all this)")


def _console() -> Any:
    """Return a console as wide as the terminal; in a file or a pipe, tables are not broken at 80 characters."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def _print_figures(result: Json) -> None:
    for key, value in result.items():
        if value is not None and not isinstance(value, list | dict):
            print(f"{key:>20}  {value:.6g}" if isinstance(value, float) else f"{key:>20}  {value}")


def _hush_libraries() -> None:
    """Turn off the libraries' own progress bars and advice, unless --verbose asks for them; errors stay on."""
    if console.verbose:
        return
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
