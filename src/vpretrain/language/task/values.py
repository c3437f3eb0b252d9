"""a_t(v): how much target mass on candidate v at token t adds to the value, in one unit for every Align and metric.

V is linear in the targets (METHODS: the linear engine): <u, g_pre> = mean_t sum_v q_t(v) a_t(v) with

    a_t(v) = -(D_u z_t(v) - sum_w p_t(w) D_u z_t(w))

Targets sum to 1, so a constant per token changes nothing: a is centred under p_C (p restricted to the candidates), and the
tangent of the logsumexp cancels. Then a is scaled to RMS 1 under p_C over the micro-batch, so that the scales of V, of the
metric and of g_down have no effect.

Shapes: N targets, K candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vpretrain import distributed
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner, LanguageState
from vpretrain.method.protocols import Parameters


def candidate_values(
    learner: LanguageLearner, batch: TokenBatch, state: LanguageState, direction: Parameters | None
) -> Float[Tensor, "N K"] | None:
    """a_t(v) along u on the candidates of one of the learner's states; None before there is a u."""
    if direction is None:
        return None
    with torch.no_grad():
        log_p_NK = state.logits.log_p_NK
        values_NK = centred_values(learner.candidate_tangents(batch, state, direction), log_p_NK)
        return values_NK / rms(values_NK, log_p_NK, batch.weights_N)


def centred_values(tangents_NK: Float[Tensor, "N K"], log_p_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """a_t(v) from D_u z_t(v), with mean 0 under p_C at every token."""
    p_NK = log_p_NK.softmax(-1)
    return (p_NK * tangents_NK).sum(-1, keepdim=True) - tangents_NK


def rms(
    values_NK: Float[Tensor, "N K"], log_p_NK: Float[Tensor, "N K"], weights_N: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Root mean square of a under p_C over the targets of a micro-batch, over all processes."""
    square_N = (log_p_NK.softmax(-1) * values_NK.square()).sum(-1)
    sums = torch.stack([(weights_N * square_N).sum(), weights_N.sum().to(square_N)])
    (sums,) = distributed.all_reduce_mean([sums])
    return (sums[0] / sums[1]).sqrt().clamp_min(torch.finfo(sums.dtype).tiny)
