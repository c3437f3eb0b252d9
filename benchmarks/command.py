"""Command line, report and end of a benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from vpretrain.errors import Interrupted, UserError
from vpretrain.run.versions import versions

_HELP = {
    "arms": "as in vpretrain compare",
    "conditions": "the streams",
    "minutes": "training time of a run",
    "seeds": "how many",
    "sizes": "feedback pairs; all arms have the last",
    "steps": "learner steps of a run",
    "variants": "variants of the settings",
}


def parser_of(target: str, description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a benchmark's parser, for changes of its recipes and for the options that have these defaults."""
    parser = argparse.ArgumentParser(prog=f"make {target} ARGS=...", description=description)
    parser.add_argument("settings", metavar="field=value", nargs="*", help="settings to change in every recipe")
    for name, default in defaults.items():
        value = default if isinstance(default, int | float) else ",".join(map(str, default))
        explained = f"{_HELP[name]} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=type(value), default=value, help=explained)
    return parser


def whole(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """Whether the options are those of the full benchmark, in one sitting or with --add in several."""
    return vars(options) | {"add": None} == vars(parser.parse_args([])) | {"add": None}


def console() -> Console:
    """Return a console on stdout, wide enough for tables where that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def write_report(
    target: str,
    report: dict[str, Any],
    file: Path,
    markdown: Callable[[dict[str, Any]], str] | None = None,
    minutes: float | None = None,
) -> None:
    """Write a benchmark's results, with the command that made them, as JSON and as tables.

    Args:
        target: of make.
        report: the results.
        file: the JSON file; the tables are written beside it.
        markdown: formats the report; None: no tables are written.
        minutes: of each run; None if the budget is not a time.
    """
    made_by = f"make {target}" + (f' ARGS="{" ".join(sys.argv[1:])}"' if len(sys.argv) > 1 else "")
    budget = {} if minutes is None else {"minutes_a_run": minutes}
    full = report | {"command": made_by} | budget | {"versions": versions()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        file.with_suffix(".md").write_text(markdown(full), encoding="utf-8")
    print(f"results: {file}")


def command(main: Callable[[], None]) -> None:
    """Run a benchmark's main function."""
    try:
        main()
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        print("benchmark: stopped; the same command goes on with the run that was interrupted", file=sys.stderr)
        sys.exit(130)
