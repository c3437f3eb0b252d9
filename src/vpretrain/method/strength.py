"""How much of the tilted task the learner gets: a share beta in [0, 1] of it, the base task (one-hot) for the rest.

    q_beta = (1 - beta) q_base + beta q*,     hence  g_pre(beta) = g_base + beta d,   d = g_pre(q*) - g_base

The direction u of the tilt comes from S alone, at every step. Whether it serves is asked seldom, on a few feedback pairs that
gave no direction, by their gradients G over all parameters. Two questions:

1. Is there a direction? Their <G, u>_S are above 0 by more than two standard errors. Where they are not, as in noise, beta = 0.
2. How far does it serve? AdamW's steps have one length whatever the gradient's, so that the gain of a step is the cosine of
   g_pre with G in the metric P of the optimizer; their product grows with the tilt without limit. In units in which
   |g_base|_P = 1, the tilt adds

       gain(beta) = (A + beta B) / sqrt(1 + 2 beta E + beta^2 F) - A
       A = <G, P g_base>,  B = <G, P d>,  E = <g_base, P d>,  F = |d|_P^2

   beta has the largest mean gain plus one standard error: where there is a direction, it is followed until it is seen to
   harm. A few pairs tell a direction from noise easily, but hardly a gain from no gain, and the trust region limits what a
   wrong tilt costs.

Where beta = 1, more of the same may serve better still. So the radius of the trust region adapts, as in optimization: it
doubles where the whole tilt is taken and its mean gain, over more than one judgement, is above 0 by more than two standard
errors, and halves where less than the whole is taken.

Pairs of earlier judgements count too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

FIRST, LONGEST = 8, 512  # learner steps until the first judgement, and at most between two
_REMEMBERED, _MEMORY = 4, 0.5  # judgements; an earlier one counts this much less each time
_ERRORS = 2.0  # standard errors from 0, for pairs to agree on a direction or on a gain
_WIDEST = 4.0  # the largest radius
# When as many times as many updates are made, the next judgement is due. Few pairs, or a direction from few, may refuse a tilt
# by chance: then it is sooner.
_AFTER_TILT, _AFTER_NONE = 4, 2
_LATE = 2 / 3  # of a run: from there on a judgement would take more than it can bring


class Judgement(NamedTuple):
    """What one judgement saw, in units in which |g_base|_P = 1; A and B in one unit for all judgements (a cosine's, if P is the
    identity).

    Attributes:
        a: A of each feedback pair.
        b: B of each.
        e, f: E and F.
        agreement: <G, u>_S of each pair, with |G| = |u|_S = 1.
    """

    a: list[float]
    b: list[float]
    e: float
    f: float
    agreement: list[float]

    def gains(self, beta: float) -> list[float]:
        """Of each pair."""
        length = math.sqrt(max(1 + 2 * beta * self.e + beta**2 * self.f, 1e-12))
        return [(a + beta * b) / length - a for a, b in zip(self.a, self.b, strict=True)]


@dataclass
class Strength:
    """The share beta, and when it is judged again.

    Attributes:
        share: beta.
        radius: of the trust region, as a multiple of the recipe's: 1 at least.
        fixed: whether the recipe gives it.
        next: the meta update at which the next judgement is due.
        longest: meta updates between two judgements, at most.
        judgements: the last ones, the latest first.
    """

    share: float = 0.0
    radius: float = 1.0
    fixed: bool = False
    next: int = 1  # before the learner's first steps its optimizer has no metric
    longest: int = 64
    judgements: list[Judgement] = field(default_factory=list)

    @classmethod
    def that_chooses_itself(cls, every_steps: int) -> Strength:
        """Judged after as many learner steps however often the direction is found.

        Args:
            every_steps: r.
        """
        first = max(1, FIRST // every_steps)
        return cls(next=first, longest=max(first, LONGEST // every_steps))

    def due(self, update: int, progress: float) -> bool:
        """Whether the meta update of this number, made when so much of the run is done, ends with a judgement."""
        return not self.fixed and update >= self.next and progress < _LATE

    def idle(self, update: int, progress: float) -> bool:
        """Whether the meta update has nothing to do: no tilt is taken, and there is none to judge."""
        return self.share == 0 and not self.due(update, progress)

    def judge(self, update: int, judgement: Judgement) -> None:
        """Take the share that serves best by what is known, adapt the radius, and set when to judge again."""
        self.judgements = [judgement, *self.judgements][:_REMEMBERED]
        self.share = best_share(self.judgements)
        times = _AFTER_TILT if self.share else _AFTER_NONE
        self.next = update + min(self.longest, (times - 1) * max(1, update))
        gain, error = _pooled([j.gains(1.0) for j in self.judgements])
        if self.share < 1:
            self.radius = max(1.0, self.radius / 2)
        elif len(self.judgements) > 1 and gain > _ERRORS * error:
            self.radius = min(_WIDEST, self.radius * 2)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON does."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        vars(self).update(state, judgements=[Judgement(*seen) for seen in state["judgements"]])


def best_share(judgements: Sequence[Judgement]) -> float:
    """The beta with the largest mean gain plus a standard error, the latest judgement first; 0 where there is no direction."""
    agreement, error = _pooled([j.agreement for j in judgements])
    if not agreement > _ERRORS * error:  # or NaN
        return 0.0

    def hoped(beta: float) -> float:
        return sum(_pooled([j.gains(beta) for j in judgements]))

    best, reach = 0.5, 0.5
    while reach > 1e-6:  # on ever finer grids of 101
        best = max((min(1.0, max(0.0, best + reach * i / 50)) for i in range(-50, 51)), key=hoped)
        reach /= 25
    return best if hoped(best) > 0 else 0.0


def _pooled(judgements: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Sum over judgements, the latest first, of the mean over pairs, an earlier one counting less; and its standard error."""
    weights = [_MEMORY**age for age in range(len(judgements))]
    means = [fmean(seen) for seen in judgements]
    # Not of `statistics`, which refuses NaN.
    errors = [
        math.dist(seen, [m] * len(seen)) / math.sqrt(len(seen) * max(1, len(seen) - 1))
        for seen, m in zip(judgements, means, strict=True)
    ]
    total = sum(w * m for w, m in zip(weights, means, strict=True))
    return total, math.hypot(*(w * e for w, e in zip(weights, errors, strict=True)))
