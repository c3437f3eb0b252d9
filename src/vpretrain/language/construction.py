"""Language constructions: the learned soft targets, and the controls, which differ from them in this file only.

Shapes: N targets, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from vpretrain.language.batch import TokenBatch
from vpretrain.language.designer import TopKDesigner
from vpretrain.language.learner import LanguageState
from vpretrain.language.loss import SoftTarget
from vpretrain.task import Task


class OneHot:
    """Ordinary next-token prediction: the base recipe."""

    def inputs(self, batch: TokenBatch) -> TokenBatch:
        """Language inputs are the tokens themselves, whatever the construction."""
        return batch

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """All mass on the true token."""
        return Task(batch, state.logits.one_hot(), {"alpha_N": torch.zeros_like(batch.weights_N)})

    def regulariser(self, task: Task) -> Tensor:
        """Nothing to hold back."""
        return torch.zeros(())

    def parameters(self) -> Iterable[nn.Parameter]:
        """None."""
        return ()


class Smoothing(OneHot):
    """q = (1 - alpha) onehot + alpha r with a constant alpha; r uniform over C_t, or the learner's own p on it."""

    def __init__(self, alpha: float, reference: Literal["uniform", "self"]) -> None:
        self.alpha, self.reference = alpha, reference

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """Uniform top-K smoothing, or self top-K distillation."""
        log_p_NK = state.logits.log_p_NK
        log_r_NK = torch.log_softmax(log_p_NK if self.reference == "self" else torch.zeros_like(log_p_NK), dim=-1)
        return mixed_task(batch, state, log_r_NK, torch.full_like(log_p_NK[:, 0], self.alpha))


class ClosedFormTilt(OneHot):
    """The best tethered r without a designer: r* = softmax_C(log p + a / lambda), a centred under p_C, at unit RMS.

    Args:
        alpha: the constant gate.
        temperature: lambda.
        along: gives the learner's state for a batch with its tangent along the present value direction, or None
            before the first meta update. It must be called inside a dual level.
    """

    def __init__(self, alpha: float, temperature: float, along: Callable[[TokenBatch], LanguageState | None]) -> None:
        self.alpha, self.temperature, self.along = alpha, temperature, along

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """p tilted towards the candidates whose target mass would help the feedback."""
        log_p_NK = state.logits.log_p_NK
        log_r_NK = torch.log_softmax(log_p_NK, dim=-1)
        with torch.no_grad(), forward_ad.dual_level():
            dual = self.along(batch)
            if dual is not None:
                p_NK = log_r_NK.exp()
                a_NK = candidate_values(dual, state.logits.candidates_NK)
                a_NK = a_NK - (p_NK * a_NK).sum(-1, keepdim=True)
                rms = (p_NK * a_NK.square()).sum(-1).mean().sqrt().clamp_min(torch.finfo(a_NK.dtype).tiny)
                log_r_NK = torch.log_softmax(log_p_NK + a_NK / rms / self.temperature, dim=-1)
        return mixed_task(batch, state, log_r_NK, torch.full_like(log_p_NK[:, 0], self.alpha))


class Selection(OneHot):
    """One-hot on the rows of a micro-batch whose own gradient g(row) aligns best with the value direction u.

    The value of a row is <u, g(row)>, the weighted mean of a_t(w_t) over its targets. The rows left out are read, by the
    tangent pass, and are not learned from; before the first meta update there is no u and all rows stay.

    Args:
        keep: share of the rows of each micro-batch that stay: rounded, one at least.
        along: as in `ClosedFormTilt`.
    """

    def __init__(self, keep: float, along: Callable[[TokenBatch], LanguageState | None]) -> None:
        self.keep, self.along = keep, along

    def inputs(self, batch: TokenBatch) -> TokenBatch:
        """The chosen rows, in their order."""
        values_N = true_token_values(batch, self.along)
        if values_N is None:
            return batch
        row_N, rows = batch.predicts_BT.nonzero()[:, 0], len(batch.domains)
        weights_N = batch.weights_N.to(values_N)
        sums_B = values_N.new_zeros(rows).index_add_(0, row_N, weights_N * values_N)
        weights_B = values_N.new_zeros(rows).index_add_(0, row_N, weights_N)
        best = (sums_B / weights_B).topk(max(1, round(self.keep * rows))).indices
        return batch.rows(sorted(best.tolist()))


class TokenWeights(OneHot):
    """One-hot with target t weighted by 2 sigmoid(a_t(w_t) / rms(a)), rescaled so that the micro-batch keeps its weight.

    Before the first meta update there is no u and all weights stay as they are.

    Args:
        along: as in `ClosedFormTilt`.
    """

    def __init__(self, along: Callable[[TokenBatch], LanguageState | None]) -> None:
        self.along = along

    def inputs(self, batch: TokenBatch) -> TokenBatch:
        """The same targets, with other weights in the loss."""
        values_N = true_token_values(batch, self.along)
        if values_N is None:
            return batch
        share_N = batch.weights_N / batch.weights_N.sum()
        finfo = torch.finfo(values_N.dtype)
        rms = (share_N * values_N.square()).sum().sqrt().clamp_min(finfo.tiny)
        # A weight of 0 would be no target any more.
        factor_N = (2 * torch.sigmoid(values_N / rms)).clamp_min(finfo.eps)
        return batch.reweighted(batch.weights_N * factor_N / (share_N * factor_N).sum())


class LearnedTargets(OneHot):
    """V-pretraining's construction: r_t and alpha_t come from the designer.

    Args:
        designer: phi.
        tether: weight of mean_t alpha_t KL(r_t || p_C), which keeps r near the learner's own distribution: V is linear
            in q, so an untethered r runs to the candidate with the largest value, likely or not.
    """

    def __init__(self, designer: TopKDesigner, tether: float) -> None:
        self.designer, self.tether = designer, tether

    def targets(self, batch: TokenBatch, state: LanguageState) -> Task:
        """Soft targets with a graph to phi, unless under no_grad."""
        log_p_NK = state.logits.log_p_NK
        log_r_NK, alpha_N = self.designer(batch, state)
        task = mixed_task(batch, state, log_r_NK, alpha_N)
        task.side["log_p_NK"] = torch.log_softmax(log_p_NK, dim=-1)
        return task

    def regulariser(self, task: Task) -> Tensor:
        """The alpha-weighted tether, averaged over targets like the loss."""
        log_r_NK, log_p_NK, weights_N = task.side["log_r_NK"], task.side["log_p_NK"], task.inputs.weights_N
        divergence_N = (log_r_NK.exp() * (log_r_NK - log_p_NK)).sum(-1)
        return self.tether * (weights_N * task.side["alpha_N"] * divergence_N).sum() / weights_N.sum()

    def parameters(self) -> Iterable[nn.Parameter]:
        """phi."""
        return self.designer.parameters()


def mixed_task(batch: TokenBatch, state: LanguageState, log_r_NK: Tensor, alpha_N: Tensor) -> Task:
    """q_t(v) = (1 - alpha_t) [v = w_t] + alpha_t r_t(v) (Eq 15); the true token is candidate 0."""
    q_NK = alpha_N[:, None] * log_r_NK.exp()
    q_NK = torch.cat([1 - alpha_N[:, None] + q_NK[:, :1], q_NK[:, 1:]], dim=-1)
    target = SoftTarget(state.logits.candidates_NK, q_NK)
    return Task(batch, target, {"alpha_N": alpha_N, "log_r_NK": log_r_NK})


def candidate_values(dual: LanguageState, candidates_NK: Tensor) -> Float[Tensor, "N K"]:
    """a_t(v) = -(D_u z_t(v) - sum_w p_t(w) D_u z_t(w)): what target mass on v adds to the value, up to the mean over t.

    `dual` carries the tangent along u; call within the dual level.
    """
    turn_NK = forward_ad.unpack_dual(dual.logits.at(candidates_NK)).tangent
    turn_N = forward_ad.unpack_dual(dual.logits.lse_N).tangent
    if turn_NK is None or turn_N is None:
        raise RuntimeError("the tangent was lost on its way through the learner")
    return turn_N[:, None] - turn_NK


def true_token_values(
    batch: TokenBatch, along: Callable[[TokenBatch], LanguageState | None]
) -> Float[Tensor, " N"] | None:
    """a_t(w_t) = D_u of target t's one-hot loss, from one tangent pass: <u, g_pre> of one-hot is its weighted mean over t.

    None before the first meta update.
    """
    with torch.no_grad(), forward_ad.dual_level():
        dual = along(batch)
        return None if dual is None else candidate_values(dual, batch.targets_N[:, None])[:, 0]
