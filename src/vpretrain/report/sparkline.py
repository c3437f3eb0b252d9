"""A curve of a run as one line of bars."""

from __future__ import annotations

import math

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 64  # of a sparkline, hence means that a curve keeps


class Curve:
    """A curve of any length in constant memory: means of equally many points, whose number doubles when means are too many."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.last: float | None = None
        self._each, self._open = 1, [0.0, 0]

    def add(self, value: float) -> None:
        """Add a point; a NaN or infinite one changes `last` alone."""
        self.last = value
        if not math.isfinite(value):
            return
        self._open = [self._open[0] + value, self._open[1] + 1]
        if self._open[1] == self._each:
            self.means.append(self._open[0] / self._each)
            self._open = [0.0, 0]
        if len(self.means) > _MOST_BARS:
            pairs = list(zip(self.means[::2], self.means[1::2], strict=False))
            if len(self.means) % 2:
                self._open = [self.means[-1] * self._each, self._each]
            self.means = [(a + b) / 2 for a, b in pairs]
            self._each *= 2

    def sparkline(self) -> str:
        """Return bars between the lowest mean and the highest."""
        if not self.means:
            return ""
        low, high = min(self.means), max(self.means)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((mean - low) * scale)] for mean in self.means)
