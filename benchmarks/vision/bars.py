"""What the benchmark must show: v ahead of fixed after equal seconds and after equal images, at almost its images/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from vpretrain.compare.changes import excludes_0
from vpretrain.vision.metrics import METRICS

LEAST_SPEED = 0.95  # of fixed's images/s, within v's own run


def quality(v_minus_fixed: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Judge v by its differences from fixed: ahead in a metric after Holm's correction, and behind in none even without it."""
    sides: dict[str, list[str]] = {"ahead": [], "behind": []}
    for key, difference in v_minus_fixed.items():
        sign = 1 if METRICS.paired[key].better == "higher" else -1
        low, high = sorted(sign * difference[end] for end in ("low", "high"))
        if low > 0 and excludes_0(difference):
            sides["ahead"].append(key)
        if high < 0:
            sides["behind"].append(key)
    return {**sides, "met": bool(sides["ahead"]) and not sides["behind"]}


def speed(added: Sequence[float]) -> dict[str, Any]:
    """Judge the images/s of v relative to fixed's within the run.

    Args:
        added: of each seed, the time of tangent, tilt and meta update over that of the phases that fixed has too.
    """
    ratios = [1 / (1 + ratio) for ratio in added]
    return {"ratio": mean(ratios), "seeds": ratios, "least": LEAST_SPEED, "met": mean(ratios) >= LEAST_SPEED}
