"""matplotlib, if it is installed; no result depends on plots."""

from __future__ import annotations

from types import ModuleType


def pyplot() -> ModuleType | None:
    """Return the pyplot module, set to draw without a screen; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module
