"""matplotlib, where it is installed: pictures are worth having, and no result depends on them."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any | None:
    """The module, drawing without a screen; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module
