"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_FONT, _PER_INCH = 8, 13  # of a legend: points, and characters that fit
_MARK = 8  # characters that a line's mark takes beside its name
_ROW = 0.18  # inches


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def pyplot() -> ModuleType:
    """Return the pyplot module, set to draw without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def name_lines(figure: Figure) -> None:
    """Name the lines of all panels once, below them, with more space for more rows: arms with settings have long names."""
    named: dict[str, Artist] = {}
    for axis in figure.axes:
        named |= {label: line for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    fit = int(_PER_INCH * figure.get_figwidth()) // (_MARK + max(map(len, named)))
    columns = max(1, min(fit, len(named)))
    figure.set_figheight(figure.get_figheight() + _ROW * -(-len(named) // columns))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=_FONT)


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as a PNG, and forget it; return the file."""
    figure.savefig(file, dpi=120)
    pyplot().close(figure)
    return file
