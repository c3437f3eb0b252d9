"""Command line, report and end of a benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vpretrain.errors import Interrupted, UserError
from vpretrain.run.versions import versions


def comparison_options(
    target: str, description: str | None, arms: Sequence[str], seeds: int, minutes: float
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that compares arms, with the options that all of them have and these defaults."""
    parser = argparse.ArgumentParser(prog=f"make {target} ARGS=...", description=description)
    parser.add_argument("settings", metavar="field=value", nargs="*", help="settings to change in every recipe")
    parser.add_argument("--quick", action="store_true", help=f"{arms[0]} and v only, one seed")
    parser.add_argument("--arms", default=",".join(arms), help="as in vpretrain compare (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of a run (default: %(default)s)")
    parser.add_argument(
        "--validation", action="store_true", help="evaluate on validation data: for every choice of settings"
    )
    return parser


def variant(options: argparse.Namespace) -> str:
    """Return a name for a benchmark with these options, part of a directory's."""
    words = ["quick" if options.quick else f"{options.minutes:g}min"]
    words += [word for word in ("validation", "seen") if getattr(options, word, False)]
    return "-".join([*words, *(setting.replace("=", "-").replace("/", "-") for setting in options.settings)])


def write_report(
    target: str, report: dict[str, Any], minutes: float | None, file: Path, markdown: Callable[[dict[str, Any]], str]
) -> None:
    """Write a benchmark's results, with the command that made them, as JSON and as tables.

    Args:
        target: of make.
        report: the results.
        minutes: of each run; None if the budget is not a time.
        file: the JSON file; the tables are written beside it.
        markdown: formats the report.
    """
    made_by = f"make {target}" + (f' ARGS="{" ".join(sys.argv[1:])}"' if len(sys.argv) > 1 else "")
    budget = {} if minutes is None else {"minutes_a_run": minutes}
    whole = report | {"command": made_by} | budget | {"versions": versions()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(whole), encoding="utf-8")
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
