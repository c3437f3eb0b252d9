"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def pyplot() -> Any:
    """Return the pyplot module, set to draw without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def save_figure(figure: Any, file: Path) -> Path:
    """Write a figure as a PNG, and forget it; return the file."""
    figure.savefig(file, dpi=120)
    pyplot().close(figure)
    return file
