"""Reduce curves: a long run to what a screen can show, and several seeds to their mean and range.

Shapes: P points, B bands (pixel columns), G points of a common grid, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Series = tuple[Sequence[float], Sequence[float]]
"""x and y."""
MOST = 240  # bands of a curve: a panel is 330 pixels wide, of which the axis takes some


@dataclass(frozen=True)
class Band:
    """A curve with its lower and upper limits, all [B] or [G]."""

    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def thin(series: Sequence[Series]) -> Band:
    """Thin the curves of one arm's seeds to at most `MOST` bands of equal width. No extreme is lost.

    If there are no more distinct x than bands, each has a band of its own.
    """
    x_P = np.concatenate([np.asarray(x, dtype=float) for x, _ in series])
    y_P = np.concatenate([np.asarray(y, dtype=float) for _, y in series])
    x_P, y_P = x_P[np.isfinite(y_P)], y_P[np.isfinite(y_P)]
    different, band_P = np.unique(x_P, return_inverse=True)
    if len(different) > MOST:
        edges = np.linspace(different[0], different[-1], MOST + 1)[1:-1]
        _, band_P = np.unique(np.searchsorted(edges, x_P, side="right"), return_inverse=True)
    count_B = np.bincount(band_P)
    low_B, high_B = np.full(len(count_B), np.inf), np.full(len(count_B), -np.inf)
    np.minimum.at(low_B, band_P, y_P)
    np.maximum.at(high_B, band_P, y_P)
    means = [np.bincount(band_P, weights=values) / count_B for values in (x_P, y_P)]
    return Band(means[0], low_B, means[1], high_B)


def between_seeds(series: Sequence[Series]) -> Band:
    """Return mean, minimum and maximum over seeds, as far as all have come, linear between their own points."""
    end = min(x[-1] for x, _ in series)
    x_G = np.unique([at for x, _ in series for at in x if at <= end])
    y_SG = np.stack([np.interp(x_G, x, y) for x, y in series])
    return Band(x_G, y_SG.min(0), y_SG.mean(0), y_SG.max(0))
