"""How much of the tilted task the learner gets: a share beta in [0, 1] of it, one-hot (or fixed views) the rest.

    q_beta = (1 - beta) q_base + beta q*,     hence  g_pre(beta) = g_base + beta d,   d = g_pre(q*) - g_base

The direction of the tilt comes from S alone, at every step. Whether it serves is asked seldom, over all parameters and on feedback
that gave no direction, in the metric P of the learner's optimizer: AdamW makes steps of one length whatever the gradient's is,
so that what a step gains is the cosine of g_pre with g_down and not their product, which grows with the tilt without limit. With

    A = <G, P g_base>,  B = <G, P d>,  C = |g_base|_P^2,  E = <g_base, P d>,  F = |d|_P^2

the cosine (A + beta B) / sqrt(C + 2 beta E + beta^2 F) has its maximum at the ends or at beta = (B C - A E) / (A F - B E). B is an
average over feedback pairs; what its standard error can explain is taken off (James and Stein's factor).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LONGEST = 64  # meta updates between two judgements


@dataclass
class Strength:
    """The share beta, and when it is asked for again.

    Attributes:
        share: beta.
        fixed: whether the recipe says so.
        next: the meta update at which the next judgement is due.
        gap: meta updates from the last judgement to that.
    """

    share: float = 0.0
    fixed: bool = False
    next: int = 1  # before the first step the optimizer has no metric
    gap: int = 1

    def due(self, update: int) -> bool:
        """Whether the meta update of this number begins with a judgement."""
        return not self.fixed and update >= self.next

    def idle(self, update: int) -> bool:
        """Whether the meta update has nothing to do: no tilt is taken, and none is to be judged."""
        return self.share == 0 and not self.due(update) and not self.due(update + 1)

    def judged(self, update: int, share: float) -> None:
        """Take what a judgement found; the gap to the next one doubles."""
        self.share, self.gap = share, min(LONGEST, 2 * self.gap)
        self.next = update + self.gap


def best_share(A: Sequence[float], B: Sequence[float], C: float, E: float, F: float) -> float:  # noqa: N803
    """The beta with the largest cosine, shrunk by what the pairs' scatter can explain of B.

    Args:
        A: <G, P g_base> of each feedback pair.
        B: <G, P d> of each.
        C: |g_base|_P^2.
        E: <g_base, P d>.
        F: |d|_P^2.
    """
    a, b = mean(A), mean(B)
    if b <= 0 or F <= 0:
        return 0.0

    def cosine(beta: float) -> float:
        return (a + beta * b) / math.sqrt(max(C + 2 * beta * E + beta**2 * F, 1e-300))

    inner = a * F - b * E
    candidates = [0.0, 1.0] + ([min(1.0, max(0.0, (b * C - a * E) / inner))] if inner else [])
    best = max(candidates, key=cosine)
    error = stdev(B) / math.sqrt(len(B)) if len(B) > 1 else 0.0
    return best * max(0.0, 1 - (error / b) ** 2)
