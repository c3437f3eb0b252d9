"""A table of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells, row by row; the first row names the columns, the first column the rows."""

    caption: str
    rows: Sequence[Sequence[str]]
