"""The law of the exact task: tilt the targets of a base task along their values, as far as a trust region allows.

V is linear in the targets (METHODS: the linear engine), <u, g_pre> = mean_t sum_v q_t(v) a_t(v), so the best targets near the
base task q0 are q*_t(v) ~ q0_t(v) exp(a_t(v) / lambda). A constant per target changes nothing, so a is centred; it is scaled to
RMS 1, so that the scales of V, of the metric and of g_down have no effect.

Values have heavy tails, and these differ from direction to direction: at the same lambda, the targets of one direction are
nearly the base task's and those of the next far from it. So the divergence from the base task is fixed instead:

    mean_t KL(q*_t || q0_t) = divergence,     q*_t(v) ~ q0_t(v) exp(a_t(v) / lambda)

The divergence grows with 1 / lambda, and lambda is the multiplier of this constraint.

Shapes: N targets, K candidates, G points of a grid.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vpretrain import distributed

_LOG2_SCALES = torch.arange(-5.0, 3.5, 0.5)  # of 1 / lambda, for values at RMS 1
_COARSE = 4  # at first every fourth of them is tried


def centred_values(tangents_NK: Float[Tensor, "N K"], log_p_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """a_t(v) from D_u z_t(v), with mean 0 at every target under the distribution that p is proportional to."""
    p_NK = log_p_NK.softmax(-1)
    return (p_NK * tangents_NK).sum(-1, keepdim=True) - tangents_NK


def rms(
    values_NK: Float[Tensor, "N K"], log_p_NK: Float[Tensor, "N K"], weights_N: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Root mean square of a under the same distribution, over the targets of a micro-batch of all processes."""
    square_N = (log_p_NK.softmax(-1) * values_NK.square()).sum(-1)
    sums = torch.stack([(weights_N * square_N).sum(), weights_N.sum().to(square_N)])
    (sums,) = distributed.all_reduce_mean([sums])
    return (sums[0] / sums[1]).sqrt().clamp_min(torch.finfo(sums.dtype).tiny)


@torch.no_grad()
def inverse_temperature(
    log_q0_NK: Float[Tensor, "N K"], values_NK: Float[Tensor, "N K"], weights_N: Float[Tensor, " N"], divergence: float
) -> Float[Tensor, ""]:
    """1 / lambda for the targets of a micro-batch over all processes; the largest on the grid if none diverges that far.

    Between grid points lambda is interpolated, which meets the divergence within a few per cent.

    Args:
        log_q0_NK: the base task.
        values_NK: a, at RMS 1.
        weights_N: of the targets.
        divergence: nats per target.
    """
    q0_NK = log_q0_NK.exp()
    largest_N1 = values_NK.masked_fill(q0_NK == 0, -math.inf).amax(-1, keepdim=True)
    below_NK = (values_NK - largest_N1).clamp_max(0)  # exponentials cannot overflow, and not all of them underflow
    weighted_NK = q0_NK * below_NK

    def total_KL(scale: Tensor) -> Float[Tensor, ""]:
        """Sum of KL(q || q0) for q ~ q0 exp(s a), as s E_q[b] - log E_q0[exp(s b)], with b = a + constant."""
        factor_NK = (scale * below_NK).exp_()
        whole_N: Tensor = torch.linalg.vecdot(factor_NK, q0_NK)
        mean_N: Tensor = torch.linalg.vecdot(factor_NK, weighted_NK) / whole_N
        return (weights_N * (scale * mean_N - whole_N.log())).sum()

    def log_KL(log2_scales_G: Tensor) -> Float[Tensor, " G"]:
        sums = [total_KL(scale) for scale in log2_scales_G.exp2()]
        (sums_G,) = distributed.all_reduce_mean([torch.stack([*sums, weights_N.sum().to(values_NK)])])
        return (sums_G[:-1] / sums_G[-1]).clamp_min(torch.finfo(sums_G.dtype).tiny).log()

    # The divergence grows with the scale, so a coarse grid shows between which points to look.
    at_G = _LOG2_SCALES.to(values_NK)
    log_KL_G = log_KL(at_G[::_COARSE])
    around = _around(log_KL_G, divergence)
    at_G = at_G[around[0] * _COARSE + torch.arange(_COARSE + 1, device=at_G.device)]
    low, high = log_KL_G[around].split(1)
    log_KL_G = torch.cat([low, log_KL(at_G[1:-1]), high])
    # Interpolate linearly in logarithms: between two points KL is nearly a power of 1 / lambda.
    around = _around(log_KL_G, divergence)
    (low, high), (below, above) = log_KL_G[around], at_G[around]
    part = ((math.log(divergence) - low) / (high - low)).nan_to_num(1.0).clamp(0, 1)
    return torch.lerp(below, above, part).exp2()


def _around(log_KL_G: Float[Tensor, " G"], divergence: float) -> Int[Tensor, " 2"]:
    """The numbers of the grid points between which the divergence is met, or of the two nearest to it."""
    after = (log_KL_G < math.log(divergence)).sum().clamp(1, len(log_KL_G) - 1)
    return torch.stack([after - 1, after])  # an index without dimensions would be read, and wait for the device


def divergence_from(log_q0_NK: Float[Tensor, "N K"], log_q_NK: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """KL(q || q0) of each target."""
    q_NK = log_q_NK.exp()
    # Where q is 0 both logarithms may be -inf: their difference is left out before the product, whose gradient would be NaN.
    return (q_NK * torch.where(q_NK > 0, log_q_NK - log_q0_NK, 0.0)).sum(-1)
