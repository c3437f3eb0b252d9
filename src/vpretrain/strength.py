"""How much of the tilted task the learner gets: a share beta in [0, 1] of it, the base task (one-hot) for the rest.

    q_beta = (1 - beta) q_base + beta q*,     hence  g_pre(beta) = g_base + beta d,   d = g_pre(q*) - g_base

The direction of the tilt comes from S alone, at every step. Whether it serves is asked seldom, over all parameters and on
feedback that gave no direction, in the metric P of the learner's optimizer. AdamW's steps have one length whatever the
gradient's, so that the gain of a step is the cosine of g_pre with g_down; their product grows with the tilt without limit. With

    A = <G, P g_base>,  B = <G, P d>,  C = |g_base|_P^2,  E = <g_base, P d>,  F = |d|_P^2

the cosine (A + beta B) / sqrt(C + 2 beta E + beta^2 F) is largest at an end or at beta = (B C - A E) / (A F - B E). B is an
average over feedback pairs; beta shrinks by as much of B as two standard errors can explain (James and Stein's form).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LONGEST = 64  # meta updates between two judgements
_ERRORS = 2.0  # a B within so many standard errors of 0 counts as 0
_TINY = 1e-300


@dataclass
class Strength:
    """The share beta, and when it is judged again.

    Attributes:
        share: beta.
        fixed: whether the recipe gives it.
        next: the meta update at which the next judgement is due.
        gap: meta updates from the last judgement to that one.
    """

    share: float = 0.0
    fixed: bool = False
    next: int = 2  # the optimizer's metric needs some steps before it says anything
    gap: int = 2

    def due(self, update: int) -> bool:
        """Whether the meta update of this number begins with a judgement."""
        return not self.fixed and update >= self.next

    def idle(self, update: int) -> bool:
        """Whether the meta update has nothing to do: no tilt is taken, and there is none to judge now or at the next one."""
        return self.share == 0 and not self.due(update) and not self.due(update + 1)

    def judged(self, update: int, share: float) -> None:
        """Take the share that a judgement found; the gap to the next one doubles."""
        self.share, self.gap = share, min(LONGEST, 2 * self.gap)
        self.next = update + self.gap


def best_share(a: Sequence[float], b: Sequence[float], c: float, e: float, f: float) -> float:
    """The beta with the largest cosine, shrunk by as much of B as the scatter of the pairs can explain: 0 below two errors.

    Args:
        a: A of each feedback pair.
        b: B of each.
        c, e, f: C, E and F.
    """
    A, B = mean(a), mean(b)
    if B <= 0 or f <= 0:
        return 0.0

    def cosine(beta: float) -> float:
        return (A + beta * B) / math.sqrt(max(c + 2 * beta * e + beta**2 * f, _TINY))

    slope = A * f - B * e
    stationary = [min(1.0, max(0.0, (B * c - A * e) / slope))] if slope else []
    error = stdev(b) / math.sqrt(len(b)) if len(b) > 1 else 0.0
    return max([0.0, 1.0, *stationary], key=cosine) * max(0.0, 1 - (_ERRORS * error / B) ** 2)
