"""The figures of a timed arm, per unit read: means over a whole period of steps, one of them with a meta update."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from vpretrain.inspection.profile import ORDINARY


def figures(plain: Sequence[float], meta: Sequence[float], period: int, told: dict[str, Any]) -> dict[str, Any]:
    """Return an arm's figures.

    Args:
        plain: seconds of each step without a meta update.
        meta: seconds of each step with one.
        period: r, of whose steps one has a meta update.
        told: `read`, tokens or images per step; `phases`, seconds by phase over the watched `steps`, of which `updates` had a
            meta update; `peak_bytes`.
    """
    read, updates = told["read"], told["updates"]
    step, update = median(plain), median(meta) - median(plain) if meta else 0.0
    phases = {
        name: 1e6 * seconds / read / (updates * period if name.startswith("meta") else told["steps"])
        for name, seconds in told["phases"].items()
    }
    ordinary = sum(phases.get(name, 0.0) for name in ORDINARY)
    return {
        "read_a_step": read,
        "seconds": {"plain": list(plain), "meta": list(meta)},
        "seconds_a_step": step + update / period,
        "seconds_a_meta_update": update or None,
        "per_second": read / (step + update / period),
        "peak_bytes": told["peak_bytes"],
        "microseconds": phases,
        "added_over_ordinary": (sum(phases.values()) - ordinary) / ordinary if phases else None,
    }
