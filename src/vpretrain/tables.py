"""The table of runs: a row per arm, a column per metric, then the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.types import Json


def grid(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for a terminal of 80 columns; the first row names the columns, the first column the rows."""
    view = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(rows[0]):
        view.add_column(column, justify="right" if number else "left", vertical="bottom")
    for row in rows[1:]:
        view.add_row(*map(escape, row))
    return view


def cells(arms: Mapping[str, Json], recipe: Recipe) -> list[list[str]]:
    """Return the table's cells, row by row; the first row names the columns."""
    metrics, unit = modality_of(recipe).metrics, recipe.unit
    shown = {name: [metrics.cell(name, arm) for arm in arms.values()] for name in metrics.columns}
    shown = {name: column for name, column in shown.items() if set(column) != {"-"}}  # only what was measured
    rows = [["arm", *shown, "steps", unit, "seconds", f"{unit}/s", "peak memory"]]
    for number, (name, arm) in enumerate(arms.items()):
        rate = arm[f"{unit}_per_s"]
        speed = "-" if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"
        spent = [f"{arm['steps']:,.0f}", f"{arm[unit]:,.0f}", f"{arm['seconds']:.1f}"]
        memory = f"{arm['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append([name, *(column[number] for column in shown.values()), *spent, speed, memory])
    return rows
