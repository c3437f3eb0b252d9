"""Commands that start, watch, list and clean runs.

As in all files of commands, heavy imports are inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

from vpretrain.cli.command import (
    Options,
    argument,
    chosen,
    command,
    complete_name,
    recipe_command,
    resume,
    switch,
    to_number,
)
from vpretrain.cli.terminal import can_ask, hush_libraries, print_figures, print_next, size_text
from vpretrain.config import Recipe
from vpretrain.console import output
from vpretrain.errors import UserError
from vpretrain.recipe import settings_help, settings_lines

# Settings in the help of `run`: `vpretrain settings` has more than two hundred.
_FIRST = (
    "name", "arm", "seed", "learner.name", "learner.device", "learner.precision", "optimizer.lr", "stream.batch_size",
    "value.every_steps", "budget.minutes",
)  # fmt: skip
_FIRST_LINES = "\n".join(line for line in settings_lines("language") if line.split()[0] in _FIRST)
_DIRECTORY = argument(
    "directory", "DIR", "directory to search, with all below it (default: %(default)s)", nargs="?", default="runs"
)


@recipe_command(
    "vpretrain run recipes/quickstart.yaml arm=one-hot",
    *resume("a run"),
    switch("--accept-changes", "with --resume: go on with settings that the run did not begin with"),
    argument(
        "--until",
        "FRACTION",
        "save and stop at this fraction of the budget, e.g. 0.5 (exit code 75); --resume goes on",
        type=partial(to_number, most=1.0),
        default=1.0,
    ),
    notes=f"Settings to begin with:\n{_FIRST_LINES}\n\n"
    "`vpretrain settings` lists all, `vpretrain settings stream` those of a section.",
)
def run(recipe: Recipe, options: Options) -> None:
    """Run one arm."""
    from vpretrain.run import run_recipe

    hush_libraries()
    result = run_recipe(recipe, **chosen(options, "resume", "overwrite", "accept_changes", "until"))
    if int(os.environ.get("RANK", "0")):
        return  # rank 0 prints
    print_figures(result.figures)
    print(f"results: {recipe.directory / 'result.json'}   log: {recipe.directory / 'metrics.jsonl'}")
    if result.steps:
        print(f"model: {recipe.directory / 'model'} (from_pretrained loads it)")
    print_next(recipe.directory)


@command(
    "vpretrain watch runs/mine\n  vpretrain watch runs/quickstart --once",
    argument("run", "RUN", "directory of a run, or of a comparison"),
    switch("--once", "print one frame and end, as it always does outside a terminal"),
)
def watch(options: Options) -> None:
    """Watch a run or a comparison in progress: curves, budget left, speed, memory, last evaluation."""
    from vpretrain.report.watch import watch

    watch(Path(options.run), output(), once=options.once or not sys.stdout.isatty())


@command(
    "vpretrain settings stream\n  vpretrain settings value.strength",
    argument("prefix", "PREFIX", "how their names begin (default: all)", nargs="?", default="", complete=complete_name),
)
def settings(options: Options) -> None:
    """List settings with their defaults and meanings."""
    print(settings_help(options.prefix))


@command("vpretrain runs\n  vpretrain runs runs/quickstart", _DIRECTORY)
def runs(options: Options) -> None:
    """List the runs and comparisons below a directory: state, arm, budget used, result."""
    from vpretrain.report.listing import listing, listing_table

    rows = listing(Path(options.directory))
    if rows:
        output().print(listing_table(rows))
    else:
        print(f"no runs below {options.directory}")


@command(
    "vpretrain clean runs\n  vpretrain clean runs/quickstart --finished --yes",
    _DIRECTORY,
    switch(
        "--finished",
        "also the newest checkpoint of finished runs; their models stay, but the runs cannot be resumed with a larger "
        "budget, report and gate cannot show their targets, and designer.warm_start cannot begin from them",
    ),
    switch("--yes", "remove without asking; needed where there is no terminal"),
)
def clean(options: Options) -> None:
    """Free the disk of old checkpoints, after asking; what a resume or an export needs stays."""
    from vpretrain.run.clean import clean, removable

    found = removable(Path(options.directory), finished=options.finished)
    if not found:
        print(f"nothing to remove below {options.directory}")
        return
    for one in found:
        print(f"{size_text(one.size):>10}  {one.run}: {', '.join(path.name for path in one.paths)}")
    print(f"{size_text(sum(one.size for one in found)):>10}  in all")
    if not options.yes:
        if not can_ask():
            raise UserError(
                "nothing was removed, as there is no terminal to ask in: add --yes to remove what is listed"
            )
        answer = ""
        with contextlib.suppress(EOFError):  # Ctrl-D
            answer = input("Remove these? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    print(f"freed {size_text(clean(found))}")
