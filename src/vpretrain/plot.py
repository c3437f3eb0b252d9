"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as a PNG, and forget it; return the file."""
    figure.savefig(file, dpi=120)
    pyplot().close(figure)
    return file
