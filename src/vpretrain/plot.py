"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


def pyplot() -> ModuleType | None:
    """Return the pyplot module, set to draw without a screen; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def save_figure(figure: Any, file: Path) -> Path:
    """Write a figure as a PNG, and forget it; return the file."""
    from matplotlib import pyplot as module

    figure.savefig(file, dpi=120)
    module.close(figure)
    return file
