"""The runs and comparisons below a directory, a line each."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vpretrain.compare.changes import headline
from vpretrain.errors import UserError
from vpretrain.files import read_json
from vpretrain.plain import counted
from vpretrain.recipe import load_recipe
from vpretrain.report.watch import GroupView, RunView
from vpretrain.run.find import runs_below

COLUMNS = ("run", "state", "arm", "budget used", "result")
Row = tuple[str, str, str, str, str]


def listing(root: Path) -> list[Row]:
    """Return a row for each run and each group of runs at or below a directory, in the order of `COLUMNS`.

    Raises UserError if there is no such directory; a run that cannot be read has a row that says so.
    """
    rows: list[Row] = []
    groups: set[Path] = set()
    for directory, members in runs_below(root):
        if members:
            groups.add(directory)
            rows.append(_group(_name(directory, root), directory, len(members)))
        else:
            indent = "  " if directory.parent in groups else ""
            rows.append(_run(indent + _name(directory, directory.parent if indent else root), directory))
    return rows


def listing_table(rows: list[Row]) -> Table:
    """Return the rows as a table for a terminal."""
    view = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*map(Text, row))
    return view


def _name(directory: Path, root: Path) -> str:
    return directory.absolute().name if directory == root else str(directory.relative_to(root))


def _run(name: str, directory: Path) -> Row:
    view = RunView(directory)
    try:
        view.update()
    except UserError as error:
        return name, "unreadable", "-", "-", str(error)
    if view.recipe is None:
        return name, view.state, "-", "-", "-"
    budget = view.recipe.budget
    limits = [f"{budget.minutes:g} min"] if budget.minutes is not None else []
    limits += [counted(budget.steps, "step")] if budget.steps is not None else []
    arm, used = view.recipe.arm, f"{view.fraction:.0%} of {' or '.join(limits)}"
    if view.untouched:
        arm = used = "-"
    result = next((f"{what} {value}" for what, value in view.scores().items()), "-")
    return name, view.state, arm, used, result


def _group(name: str, directory: Path, members: int) -> Row:
    view = GroupView(directory)
    try:
        view.update()
        shares = [member.fraction for member in view.members.values() if not member.untouched]
        used = f"{fmean(shares):.0%}" if shares else "-"
        return name, view.state, counted(members, "run"), used, _headline(directory)
    except UserError as error:
        return name, "unreadable", counted(members, "run"), "-", str(error)


def _headline(directory: Path) -> str:
    if not (directory / "results.json").exists():
        return "-"
    try:
        return headline(read_json(directory / "results.json"), load_recipe(directory / "recipe.yaml"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged, or of another version
        return "results.json cannot be read"
