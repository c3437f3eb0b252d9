"""Language constructions: the exact task, the learned targets, and the controls, which differ from them in this file only.

Shapes: N targets, K candidates, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vpretrain.language.config import ControlConfig, ValueConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageState
from vpretrain.language.model.loss import SoftTarget
from vpretrain.language.task.designer import TopKDesigner
from vpretrain.method.base_construction import BaseConstruction
from vpretrain.method.protocols import Task
from vpretrain.method.strength import Strength
from vpretrain.method.tilt import centred_values, divergence_from, inverse_temperature, rms

Values = Callable[[TokenBatch, LanguageState], Float[Tensor, "N K"] | None]
"""a_t(v) of a batch on the candidates of its state, see `vpretrain.language.task.values`; None before there is a u."""

Targets = Callable[[TokenBatch, LanguageState], Task]


@dataclass(frozen=True)
class TaskParts:
    """The parts that an arm's construction is built from.

    Attributes:
        value, control: the sections of the recipe.
        strength: for arms whose targets are the exact task.
        designer: for arms that train one.
        values: gives a_t(v) on the candidates.
        true_values: gives a_t(w_t), from a pass of its own.
    """

    value: ValueConfig
    control: ControlConfig
    strength: Strength | None
    designer: TopKDesigner | None
    values: Values
    true_values: Callable[[TokenBatch], Tensor | None]


class OneHot(BaseConstruction):
    """Ordinary next-token prediction: the base task.

    Attributes:
        keeps_batches: whether `inputs` returns each batch itself.
    """

    keeps_batches = True

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        """Build the construction of an arm."""
        return cls()

    def asks_for_candidates(self) -> bool:
        """Whether the learner's own pass must keep more than the true token."""
        return False

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """The task with all mass on the true token."""
        return Task(batch, state.logits.one_hot(), {"alpha_N": torch.zeros_like(batch.weights_N)})


class Smoothing(OneHot):
    """q = (1 - alpha) onehot + alpha r with a constant alpha; r uniform over C_t, or the learner's own p on it."""

    @classmethod
    def of(cls, parts: TaskParts, reference: Literal["uniform", "self"] = "uniform") -> OneHot:
        return cls(parts.control.alpha, reference)

    def __init__(self, alpha: float, reference: Literal["uniform", "self"]) -> None:
        self.alpha, self.reference = alpha, reference

    def asks_for_candidates(self) -> bool:
        """Return True, always."""
        return True

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """Uniform top-K smoothing, or self top-K distillation."""
        log_p_NK = state.logits.log_p_NK
        log_r_NK = torch.log_softmax(log_p_NK if self.reference == "self" else torch.zeros_like(log_p_NK), dim=-1)
        return mixed_task(batch, state, log_r_NK, torch.full_like(log_p_NK[:, 0], self.alpha))


class ExactTask(OneHot):
    """V's optimum inside a trust region, in closed form (METHODS: the exact task), mixed with one-hot by the strength beta.

        q* = argmax_q  mean_t sum_v q_t(v) a_t(v)   with  mean_t KL(q_t || q0_t) <= divergence
        q*_t(v) ~ q0_t(v) exp(a_t(v) / lambda),     q0_t = (1 - alpha0) [v = w_t] + alpha0 p_C(v)
        q_t  = (1 - beta) [v = w_t] + beta q*_t(v)

    lambda is the constraint's multiplier. The gate alpha_t = 1 - q_t(w_t) opens where the feedback opposes the true token and
    closes where it supports it. At beta = 0 and before the first meta update the targets are one-hot, as with alpha0 = 0.

    Args:
        alpha0: mass of the base task on the learner's own distribution; without it there is nothing to tilt.
        divergence: nats per target, at radius 1.
        strength: gives beta, and the radius.
        values: gives a_t(v).
    """

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        assert parts.strength is not None
        return cls(parts.value.alpha0, parts.value.divergence, parts.strength, parts.values)

    def __init__(self, alpha0: float, divergence: float, strength: Strength, values: Values) -> None:
        self.alpha0, self.divergence, self.strength, self.values = alpha0, divergence, strength, values

    def asks_for_candidates(self) -> bool:
        """Whether a tilt is taken; without one a step is a one-hot step, at the same cost."""
        return self.strength.beta > 0

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """The tilted base task, mixed with one-hot."""
        return self.at_beta(batch, state, self.strength.beta)

    def ends(self) -> tuple[Targets, Targets]:
        """The targets at beta = 0 and at beta = 1, which a judgement compares."""
        return partial(self.at_beta, beta=0.0), partial(self.at_beta, beta=1.0)

    def at_beta(self, batch: TokenBatch, state: LanguageState, beta: float) -> Task:
        """The targets at this beta."""
        values_NK = self.values(batch, state) if beta else None
        if values_NK is None:
            return super().targets(batch, state)
        log_p_NK = torch.log_softmax(state.logits.log_p_NK, dim=-1)
        # Candidate 0 is the true token: in q0 it has 1 - alpha0 besides its part of alpha0 p_C, in q likewise 1 - beta.
        log_q0_NK = log_p_NK + (math.log(self.alpha0) if self.alpha0 else -math.inf)
        true_N1 = torch.logaddexp(log_q0_NK[:, :1], log_q0_NK.new_tensor(math.log1p(-self.alpha0)))
        log_q0_NK = torch.cat([true_N1, log_q0_NK[:, 1:]], dim=-1)
        divergence = self.strength.radius * self.divergence
        scale = inverse_temperature(log_q0_NK, values_NK, batch.weights_N, divergence)
        log_q_NK = torch.log_softmax(log_q0_NK + self.tilt(batch, state, scale * values_NK), dim=-1)
        q_NK = beta * log_q_NK.exp()
        q_NK = torch.cat([1 - beta + q_NK[:, :1], q_NK[:, 1:]], dim=-1)
        side = {"alpha_N": 1 - q_NK[:, 0], "log_q_NK": log_q_NK, "log_q0_NK": log_q0_NK, "log_p_NK": log_p_NK}
        return Task(batch, SoftTarget(state.logits.candidates_NK, q_NK), side | {"temperature": 1 / scale})

    def tilt(self, batch: TokenBatch, state: LanguageState, tilt_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The term that is added to log q0, given a / lambda."""
        return tilt_NK


class ResidualTargets(ExactTask):
    """The exact task with a designer's scores on top: log q* ~ log q0 + a / lambda + scores, the scores 0 at the start.

    The designer learns from the value over a wider S than that of a, against lambda KL(q* || q0): its best scores are
    a / lambda of the wider S, minus the a / lambda that is there already.

    Args:
        designer: phi.
        alpha0, divergence, strength, values: as in `ExactTask`; lambda is that of a, without the scores.
    """

    designer: TopKDesigner

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        assert parts.designer is not None
        assert parts.strength is not None
        return cls(parts.designer, parts.value.alpha0, parts.value.divergence, parts.strength, parts.values)

    def __init__(
        self, designer: TopKDesigner, alpha0: float, divergence: float, strength: Strength, values: Values
    ) -> None:
        super().__init__(alpha0, divergence, strength, values)
        self.designer = designer

    def tilt(self, batch: TokenBatch, state: LanguageState, tilt_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """a / lambda plus the designer's scores, with a graph to phi, unless under no_grad."""
        scores_NK, _ = self.designer(batch, state)
        return tilt_NK + scores_NK

    def regulariser(self, task: Task) -> Tensor:
        """lambda KL(q* || q0), averaged over targets like the loss and multiplied by beta like the value."""
        if "log_q_NK" not in task.side:
            return torch.zeros(())
        log_q_NK, log_q0_NK = task.side["log_q_NK"], task.side["log_q0_NK"]
        divergence_N = divergence_from(log_q0_NK, log_q_NK)
        return self.strength.beta * task.side["temperature"] * (task.inputs.share_N * divergence_N).sum()

    def unit(self, surrogate: Tensor, task: Task) -> Tensor | float:
        """RMS of a over the value's own S, so that V - R is largest at the exact task of that S."""
        q_NK = task.target.q_NK
        if not q_NK.requires_grad:
            return 1.0
        (slope_NK,) = torch.autograd.grad(surrogate, q_NK, retain_graph=True)
        values_NK = centred_values(-slope_NK / task.inputs.share_N[:, None], task.side["log_p_NK"])
        return rms(values_NK, task.side["log_p_NK"], task.inputs.weights_N)


class Selection(OneHot):
    """One-hot on the rows of a micro-batch whose own gradient g(row) aligns best with the value direction u.

    The value of a row is <u, g(row)>, the weighted mean of a_t(w_t) over its targets. The rows left out are read once, without
    gradient, and are not learned from; before the first meta update there is no u and all rows stay.

    Args:
        keep: fraction of the rows of each micro-batch that stay: rounded, at least one row.
        true_values: gives a_t(w_t) of a batch, [N], from a pass of its own; None before there is a u.
    """

    keeps_batches = False

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        return cls(parts.control.keep, parts.true_values)

    def __init__(self, keep: float, true_values: Callable[[TokenBatch], Tensor | None]) -> None:
        self.keep, self.true_values = keep, true_values

    def inputs(self, batch: TokenBatch) -> TokenBatch:
        """The chosen rows, in their order."""
        values_N = self.true_values(batch)
        if values_N is None:
            return batch
        row_N, rows = batch.predicts_BT.nonzero()[:, 0], len(batch.domains)
        weights_N = batch.weights_N.to(values_N)
        sums_B = values_N.new_zeros(rows).index_add_(0, row_N, weights_N * values_N)
        weights_B = values_N.new_zeros(rows).index_add_(0, row_N, weights_N)
        best = (sums_B / weights_B).topk(max(1, round(self.keep * rows))).indices
        return batch.rows(sorted(best.tolist()))


class TokenWeights(OneHot):
    """One-hot with target t weighted by 2 sigmoid(a_t(w_t) / rms), rescaled so that the micro-batch keeps its weight.

    Before the first meta update there is no u and all weights stay as they are.

    Args:
        true_values: as in `Selection`.
    """

    keeps_batches = False

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        return cls(parts.true_values)

    def __init__(self, true_values: Callable[[TokenBatch], Tensor | None]) -> None:
        self.true_values = true_values

    def inputs(self, batch: TokenBatch) -> TokenBatch:
        """The same targets, with other weights in the loss."""
        values_N = self.true_values(batch)
        if values_N is None:
            return batch
        share_N = batch.weights_N / batch.weights_N.sum()
        finfo = torch.finfo(values_N.dtype)
        rms = (share_N * values_N.square()).sum().sqrt().clamp_min(finfo.tiny)
        # A token of weight 0 would no longer be a target.
        factor_N = (2 * torch.sigmoid(values_N / rms)).clamp_min(finfo.eps)
        return batch.reweighted(batch.weights_N * factor_N / (share_N * factor_N).sum())


class LearnedTargets(OneHot):
    """The paper's construction (Eq 15): r_t and alpha_t come from the designer; r is not regularised towards the learner.

    Args:
        designer: phi.
    """

    designer: TopKDesigner

    @classmethod
    def of(cls, parts: TaskParts) -> OneHot:
        assert parts.designer is not None
        return cls(parts.designer)

    def __init__(self, designer: TopKDesigner) -> None:
        self.designer = designer

    def asks_for_candidates(self) -> bool:
        """Return True, always."""
        return True

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """Soft targets with a graph to phi, unless under no_grad."""
        scores_NK, alpha_N = self.designer(batch, state)
        return mixed_task(batch, state, torch.log_softmax(scores_NK, dim=-1), alpha_N)


def mixed_task(batch: TokenBatch, state: LanguageState, log_r_NK: Tensor, alpha_N: Tensor) -> Task:
    """q_t(v) = (1 - alpha_t) [v = w_t] + alpha_t r_t(v) (Eq 15); the true token is candidate 0."""
    q_NK = alpha_N[:, None] * log_r_NK.exp()
    q_NK = torch.cat([1 - alpha_N[:, None] + q_NK[:, :1], q_NK[:, 1:]], dim=-1)
    target = SoftTarget(state.logits.candidates_NK, q_NK)
    return Task(batch, target, {"alpha_N": alpha_N, "log_r_NK": log_r_NK})
