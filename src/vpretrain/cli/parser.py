"""The command line: the parser of all commands, and the reporting of errors."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version

from vpretrain import console, pretrained
from vpretrain.cli import comparisons, inspection, models, preparation, runs
from vpretrain.cli.command import Command, add_switches
from vpretrain.errors import FailedOnAnotherRank, Interrupted, Paused, UserError
from vpretrain.plain import nearest

_TRUST = "--trust-remote-code"
# What disks and permissions refuse; other errors of the system are mistakes of ours, which need their traceback.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.ESTALE,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 for a failed check, or that of the error.

    If the reader of the output has gone, as in `vpretrain inspect ... | head -1`, it ends quietly.
    """
    _open_output()
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, commands = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions; this ends the process
        import argcomplete

        argcomplete.autocomplete(parser)
    if refusal := _unknown_command(arguments, commands):
        return _failed(refusal)
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides"):  # those after an option are in the rest before Python 3.13
        words = options.overrides = [*options.overrides, *rest]
        stray = (word for word in words if word.startswith("-") or "=" not in word)
        rest = sorted(stray, key=arguments.index)
    if rest:
        commands[options.command.name].error(_unrecognized(rest, options))
    if setting := _without_recipe(options):
        return _failed(f"{setting} changes a recipe: name one before it")
    if options.quiet and options.verbose:  # one before the command, one after it: argparse sees neither's other
        parser.error("--quiet and --verbose exclude each other")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.command is not runs.run:
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
        return _failed(f"{error}; mend that (make room, if the disk is full), then run the command again")
    except UserError as error:
        return _failed(error, error.exit_code)
    except (Interrupted, Paused) as stop:
        if int(os.environ.get("RANK", "0")):  # all processes stop together, and rank 0 prints
            return stop.exit_code
        return _failed(stop, stop.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(why: object, code: int = 2) -> int:
    """Print the line on stderr that ends a command; return its exit code."""
    print(f"vpretrain: {why}", file=sys.stderr)
    return code


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
    meant = nearest(word, known)
    hint = f"did you mean '{meant}'?" if meant else f"choose from {', '.join(known)}"
    return f"there is no command '{word}': {hint}"


def _without_recipe(options: argparse.Namespace) -> str | None:
    """Return the first setting if no recipe stands before it; argparse may take it for the recipe."""
    recipe = getattr(options, "recipe", "")
    if recipe is None:
        return next(iter(options.overrides), None)
    return recipe if "=" in recipe and not os.path.exists(recipe) else None


def _unrecognized(words: Sequence[str], options: argparse.Namespace) -> str:
    """Say what is wrong with words that are neither arguments of their command nor settings."""
    hints = []
    if _TRUST in words:
        hints.append(f"{_TRUST} stands before the command")
    elif getattr(options, "recipe", "") is None and any(word.endswith((".yaml", ".yml")) for word in words):
        hints.append("a recipe stands before the options")
    elif hasattr(options, "overrides"):
        hints.append("settings are given as field=value, without dashes")
    if hasattr(options, "arms"):
        hints.append("arms are separated by commas")
    return "; ".join([f"unrecognized arguments: {' '.join(words)}", *hints])


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by their names."""
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
    parser.add_argument(_TRUST, action="store_true", help=trust)
    add_switches(parser, default=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (runs, comparisons, inspection, preparation, models):
        for one in vars(module).values():  # in the order of definition, which is that of the help
            if isinstance(one, Command):
                one.add_to(subparsers)
    return parser, subparsers.choices
