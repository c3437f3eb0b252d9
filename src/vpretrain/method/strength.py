"""The strength beta: the learner gets a fraction beta in [0, 1] of the tilted task, and the base task (one-hot) for the rest.

    q_beta = (1 - beta) q_base + beta q*,     hence  g_pre(beta) = g_base + beta d,   d = g_pre(q*) - g_base

The direction u of the tilt comes from S alone, at every step. Whether it helps is judged rarely, on a few feedback pairs that
gave no direction, by their gradients G. There are two questions:

1. Is there a direction? Yes, if the <G, u>_S at |G| = 1 are above 0 by more than three standard errors. If not, beta = 0.
   If there is one, it is followed, beta = 1. This takes G over S alone, about the time of a learner step.
2. How far does it help? This takes G over all parameters, the time of several steps, and is asked of a tilt that has been
   in use for 24 steps. The length of AdamW's steps does not depend on the gradient's, so the gain of a step is the
   cosine of g_pre with G in the metric P of the optimizer; their inner product grows with the tilt without limit. In units in
   which |g_base|_P = 1, the tilt adds

       gain(beta) = (A + beta B) / sqrt(1 + 2 beta E + beta^2 F) - A
       A = <G, P g_base>,  B = <G, P d>,  E = <g_base, P d>,  F = |d|_P^2

   beta maximises the mean gain plus one standard error: if there is a direction, it is followed until it is seen to harm. A
   few pairs easily distinguish a direction from noise, but hardly a gain from no gain, and the trust region limits the cost
   of a wrong tilt.

At beta = 1 a larger tilt may help even more. So the radius of the trust region adapts, as in optimization: it doubles if the
full tilt is used and its mean gain, over more than one judgement, is above 0 by more than two standard errors, and halves if
less than the full tilt is used.

Pairs of earlier judgements count too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from vpretrain.config import ValueConfig
from vpretrain.types import Json

FIRST, LONGEST = 8, 512  # learner steps until the first judgement, and at most between two judgements
_UNMEASURED = 24  # learner steps for which a new tilt is followed before its gain is measured
_REMEMBERED, _MEMORY = 4, 0.5  # judgements that count, and the weight of each relative to the next
_AGREED, _GAINED = 3.0, 2.0  # standard errors above 0 at which pairs agree on a direction, and on a gain
_WIDEST = 4.0  # the largest radius, as a multiple of the recipe's
# The next judgement is due after this many times as many updates. It is sooner after a refusal, which may be due to chance in
# the few pairs of the judgement or of the direction.
_AFTER_TILT, _AFTER_NONE = 4, 2
_LATE = 1 / 2  # fraction of a run after which a judgement would cost more than it can gain


class Judgement(NamedTuple):
    """The measurements of one judgement, in units in which |g_base|_P = 1; A and B have one unit for all judgements (cosines if
    P is the identity).

    Attributes:
        agreement: <G, u>_S of each feedback pair, all with the same |G|_S.
        a: A of each pair; empty if only the first question was asked.
        b: B of each.
        e, f: E and F.
    """

    agreement: list[float]
    a: Sequence[float] = ()
    b: Sequence[float] = ()
    e: float = 0.0
    f: float = 0.0

    def is_finite(self) -> bool:
        """Whether nothing that was measured is NaN or infinite."""
        return all(map(math.isfinite, (*self.agreement, *self.a, *self.b, self.e, self.f)))

    def gains(self, beta: float) -> list[float]:
        """Return the gain of each pair."""
        length = math.sqrt(max(1 + 2 * beta * self.e + beta**2 * self.f, 1e-12))
        return [(a + beta * b) / length - a for a, b in zip(self.a, self.b, strict=True)]


@dataclass
class Strength:
    """The strength beta, and when it is judged again.

    Attributes:
        beta: the weight of the tilted task.
        radius: of the trust region, as a multiple of the recipe's; at least 1.
        fixed: whether the recipe sets beta.
        next: the meta update at which the next judgement is due.
        longest: meta updates between two judgements, at most.
        unmeasured: meta updates from taking a tilt to measuring its gain.
        judgements: the last ones, the latest first.
    """

    beta: float = 0.0
    radius: float = 1.0
    fixed: bool = False
    next: int = 1  # before the learner's first step its optimizer has no metric
    longest: int = 64
    unmeasured: int = 3
    judgements: list[Judgement] = field(default_factory=list)

    @classmethod
    def of(cls, value: ValueConfig) -> Strength:
        """Return the recipe's fixed strength, or for `auto` one that is judged during the run."""
        if value.strength == "auto":
            return cls.that_chooses_itself(value.every_steps)
        return cls(beta=value.strength, fixed=True)

    @classmethod
    def that_chooses_itself(cls, every_steps: int) -> Strength:
        """Return a strength that is judged after the same number of learner steps for every r.

        Args:
            every_steps: r.
        """
        first = max(1, FIRST // every_steps)
        longest, unmeasured = max(first, LONGEST // every_steps), max(1, _UNMEASURED // every_steps)
        return cls(next=first, longest=longest, unmeasured=unmeasured)

    def due(self, update: int, progress: float) -> bool:
        """Whether meta update number `update`, at this progress of the run, ends with a judgement."""
        return not self.fixed and update >= self.next and progress < _LATE

    def in_doubt(self, judgement: Judgement) -> bool:
        """Whether to ask how far the tilt helps, too: there is a direction, and it is in use, or that was asked before."""
        used = self.beta > 0 or any(earlier.a for earlier in self.judgements)
        return used and has_direction([judgement, *self.judgements][:_REMEMBERED])

    def idle(self, update: int, progress: float) -> bool:
        """Whether the meta update has nothing to do: no tilt is used, and no judgement is due."""
        return self.beta == 0 and not self.due(update, progress)

    def judge(self, update: int, judgement: Judgement) -> None:
        """Set beta to the best value by the judgements so far, adapt the radius, and schedule the next judgement."""
        self.judgements = [judgement, *self.judgements][:_REMEMBERED]
        self.beta = best_beta(self.judgements)
        gap = ((_AFTER_TILT if self.beta else _AFTER_NONE) - 1) * max(1, update)
        if self.beta and not judgement.a:
            gap = self.unmeasured
        self.next = update + min(self.longest, gap)
        gains = [j.gains(1.0) for j in self.judgements if j.a]
        gain, error = _pooled(gains)
        if self.beta < 1:
            self.radius = max(1.0, self.radius / 2)
        elif len(gains) > 1 and gain > _GAINED * error:
            self.radius = min(_WIDEST, self.radius * 2)
        if not judgement.is_finite():  # it counts now, and not for the judgements to come
            del self.judgements[0]

    def postpone(self, update: int) -> None:
        """Schedule the next judgement as after a refusal: the feedback gave nothing to judge by."""
        self.next = update + min(self.longest, (_AFTER_NONE - 1) * max(1, update))

    def state_dict(self) -> Json:
        """Return the state for a checkpoint, as JSON."""
        return dict(vars(self))

    def load_state_dict(self, state: Json) -> None:
        """Restore the state."""
        vars(self).update(state, judgements=[Judgement(*seen) for seen in state["judgements"]])


def least_steps(every_steps: int, burn_in_steps: int = 0) -> int:
    """Return the learner steps of the shortest run with two judgements, even if the first finds no direction.

    Args:
        every_steps: r.
        burn_in_steps: learner steps before the first meta update.
    """
    first = Strength.that_chooses_itself(every_steps).next
    return int((burn_in_steps + _AFTER_NONE * first * every_steps) / _LATE) + 1  # `due` leaves out the boundary


def best_beta(judgements: Sequence[Judgement]) -> float:
    """Return the beta with the largest mean gain plus a standard error (latest judgement first).

    It is 0 without a direction, and 1 if no gain was measured.
    """
    if not has_direction(judgements):
        return 0.0
    measured = [j for j in judgements if j.a]
    if not measured:
        return 1.0

    def hoped(beta: float) -> float:
        return sum(_pooled([j.gains(beta) for j in measured]))

    best, reach = 0.5, 0.5
    while reach > 1e-6:  # on ever finer grids of 101 points
        best = max((min(1.0, max(0.0, best + reach * i / 50)) for i in range(-50, 51)), key=hoped)
        reach /= 25
    return best if hoped(best) > 0 else 0.0


def has_direction(judgements: Sequence[Judgement]) -> bool:
    """Whether the pairs agree with the direction (latest judgement first)."""
    agreement, error = _pooled([_normalised(j.agreement) for j in judgements])
    return agreement > _AGREED * error


def _normalised(agreement: Sequence[float]) -> list[float]:
    """Return the agreement at RMS 1: judgements differ in their unit."""
    rms = math.hypot(*agreement) / math.sqrt(len(agreement))
    return [x / rms if rms else 0.0 for x in agreement]


def _pooled(judgements: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the sum over judgements of the mean over pairs, earlier ones weighted down, and its standard error."""
    weights = [_MEMORY**age for age in range(len(judgements))]
    means = [fmean(seen) for seen in judgements]
    # Not by `statistics`, which rejects NaN.
    errors = [
        math.dist(seen, [m] * len(seen)) / math.sqrt(len(seen) * max(1, len(seen) - 1))
        for seen, m in zip(judgements, means, strict=True)
    ]
    total = sum(w * m for w, m in zip(weights, means, strict=True))
    return total, math.hypot(*(w * e for w, e in zip(weights, errors, strict=True)))
