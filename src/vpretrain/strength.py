"""How much of the tilted task the learner gets: a share beta in [0, 1] of it, the base task (one-hot) for the rest.

    q_beta = (1 - beta) q_base + beta q*,     hence  g_pre(beta) = g_base + beta d,   d = g_pre(q*) - g_base

The direction of the tilt comes from S alone, at every step. Whether it serves is asked seldom, over all parameters and on
feedback that gave no direction, in the metric P of the learner's optimizer. AdamW's steps have one length whatever the
gradient's, so that the gain of a step is the cosine of g_pre with g_down; their product grows with the tilt without limit. For
the gradient G of one feedback pair, in units in which |g_base|_P = 1, the tilt adds

    gain(beta) = (A + beta B) / sqrt(1 + 2 beta E + beta^2 F) - A
    A = <G, P g_base>,  B = <G, P d>,  E = <g_base, P d>,  F = |d|_P^2

beta has the largest mean gain, over the pairs of this judgement and of those before it, and shrinks by as much of that gain as
the scatter of the pairs can explain (James and Stein's form).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any, NamedTuple

FIRST, LONGEST = 8, 512  # learner steps until the first judgement, and at most between two
_REMEMBERED, _MEMORY = 4, 0.5  # judgements; an earlier one counts this much less each time
_ERRORS = 2.0  # a gain within so many standard errors of 0 counts as 0


class Judgement(NamedTuple):
    """What one judgement saw, in units in which |g_base|_P = 1; A and B in one unit for all judgements (a cosine's, if P is the
    identity).

    Attributes:
        a: A of each feedback pair.
        b: B of each.
        e, f: E and F.
    """

    a: list[float]
    b: list[float]
    e: float
    f: float

    def gains(self, beta: float) -> list[float]:
        """Of each pair."""
        length = math.sqrt(max(1 + 2 * beta * self.e + beta**2 * self.f, 1e-12))
        return [(a + beta * b) / length - a for a, b in zip(self.a, self.b, strict=True)]


@dataclass
class Strength:
    """The share beta, and when it is judged again.

    Attributes:
        share: beta.
        fixed: whether the recipe gives it.
        next: the meta update at which the next judgement is due.
        gap: meta updates from the last judgement to that one; it doubles.
        longest: the most that it becomes.
        judgements: the last ones, the latest first.
    """

    share: float = 0.0
    fixed: bool = False
    next: int = 1  # before the learner's first steps its optimizer has no metric
    gap: int = 1
    longest: int = 64
    judgements: list[Judgement] = field(default_factory=list)

    @classmethod
    def that_chooses_itself(cls, every_steps: int) -> Strength:
        """Judged after as many learner steps however often the direction is found.

        Args:
            every_steps: r.
        """
        first = max(1, FIRST // every_steps)
        return cls(next=first, gap=first, longest=max(first, LONGEST // every_steps))

    def due(self, update: int) -> bool:
        """Whether the meta update of this number ends with a judgement."""
        return not self.fixed and update >= self.next

    def idle(self, update: int) -> bool:
        """Whether the meta update has nothing to do: no tilt is taken, and there is none to judge."""
        return self.share == 0 and not self.due(update)

    def judge(self, update: int, judgement: Judgement) -> None:
        """Take the share that serves best by what is known; the gap to the next judgement doubles."""
        self.judgements = [judgement, *self.judgements][:_REMEMBERED]
        self.share, self.gap = best_share(self.judgements), min(self.longest, 2 * self.gap)
        self.next = update + self.gap

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON does."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        vars(self).update(state, judgements=[Judgement(*seen) for seen in state["judgements"]])


def best_share(judgements: Sequence[Judgement]) -> float:
    """The beta with the largest mean gain, the latest judgement first; 0 where that gain is below two standard errors."""
    weights = [_MEMORY**age for age in range(len(judgements))]

    def gain(beta: float) -> float:
        return sum(w * mean(j.gains(beta)) for w, j in zip(weights, judgements, strict=True))

    best, reach = 0.5, 0.5
    while reach > 1e-6:  # on ever finer grids of 101
        best = max((min(1.0, max(0.0, best + reach * i / 50)) for i in range(-50, 51)), key=gain)
        reach /= 25
    if not gain(best) > 0:  # or NaN
        return 0.0
    square = sum((w * _standard_error(j.gains(best))) ** 2 for w, j in zip(weights, judgements, strict=True))
    return best * max(0.0, 1 - square * (_ERRORS / gain(best)) ** 2)


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
