"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any | None:
    """Return the pyplot module, set to draw without a screen; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module
