"""Cross-entropy to sparse soft targets (Eq 15), for which no [N, V] tensor is ever held.

    L_pre = sum_t s_t logsumexp(z_t)  -  sum_t s_t sum_{v in C_t} q_t(v) z_t(v),     s_t: target t's fraction of the weight

The first term does not depend on q, the second only on K logits per token. So one pass over chunks of the targets computes
the candidates, their logits, and the first term with its whole gradient before q is known; the gradient that q adds is
sparse. All arms use the same pass: K = 1 is one-hot.

Shapes: N targets, n targets of a chunk, V vocabulary, K candidates, D the learner's width, G scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vpretrain.types import Keywords

_GROUP = 8  # ids per group, see `top_ids`
CHUNK = 2**26  # logits per chunk at most: 256 MiB in fp32. Fewer chunks mean fewer passes over the head's gradient.


@dataclass(frozen=True)
class SoftTarget:
    """A distribution over K candidates per token; the first candidate is the true token.

    Attributes:
        candidates_NK: token ids C_t.
        q_NK: their probabilities; every row sums to 1.
    """

    candidates_NK: Int[Tensor, "N K"]
    q_NK: Float[Tensor, "N K"]

    def detach(self) -> SoftTarget:
        """The same target without a graph to the designer."""
        return SoftTarget(self.candidates_NK, self.q_NK.detach())


@dataclass(frozen=True)
class Head:
    """The output layer: z = bend(W h + b), where bend(x) = cap tanh(factor x / cap), or factor x without a cap.

    Cohere and Granite have a factor, Gemma a cap.
    """

    weight_VD: Float[Tensor, "V D"]
    bias_V: Float[Tensor, " V"] | None = None
    factor: float = 1.0
    cap: float | None = None

    def bend(self, raw: Tensor) -> Tensor:
        """Return z, given W h + b."""
        z = raw if self.factor == 1 else raw * self.factor
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def softcap_grad(self, z: Tensor) -> Tensor | float:
        """The derivative of `bend`, in terms of z."""
        return self.factor if self.cap is None else self.factor * (1 - (z / self.cap).square())

    def candidate_logits(
        self, hidden_ND: Float[Tensor, "N D"], candidates_NK: Int[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """Logits of the candidates only, in fp32 or wider."""
        raw_NK = gather_dot(hidden_ND, self.weight_VD, candidates_NK)
        return self.bend(at_least_fp32(raw_NK if self.bias_V is None else raw_NK + self.bias_V[candidates_NK]))

    def candidate_tangents_at(
        self, hidden_ND: Float[Tensor, "N D"], tangent: Tangent, candidates_NK: Int[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """The tangent of `candidate_logits`."""
        z_NK = None if self.cap is None else self.candidate_logits(hidden_ND, candidates_NK)
        return self.candidate_tangents(hidden_ND, tangent, candidates_NK, z_NK)

    def candidate_tangents(
        self,
        hidden_ND: Float[Tensor, "N D"] | None,
        tangent: Tangent,
        candidates_NK: Int[Tensor, "N K"],
        z_NK: Float[Tensor, "N K"] | None,
    ) -> Float[Tensor, "N K"]:
        """The tangent of the candidates' logits z.

        `hidden_ND` is needed where the head's own parameters have a tangent, `z_NK` where the logits are capped.
        """
        raw_NK = gather_dot(tangent.hidden_ND, self.weight_VD, candidates_NK)
        if tangent.weight_VD is not None:
            assert hidden_ND is not None
            raw_NK = raw_NK + gather_dot(hidden_ND, tangent.weight_VD, candidates_NK)
        if tangent.bias_V is not None:
            raw_NK = raw_NK + tangent.bias_V[candidates_NK]
        if self.cap is None:
            return raw_NK * self.factor
        assert z_NK is not None
        return raw_NK * self.softcap_grad(z_NK)

    def tangent_of_mean_lse(
        self,
        hidden_ND: Float[Tensor, "N D"],
        tangent: Tangent,
        targets_N: Int[Tensor, " N"],
        share_N: Float[Tensor, " N"],
    ) -> Float[Tensor, ""]:
        """The tangent of the mean logsumexp: the inner product of its gradient and the tangents of its inputs."""
        given = {"hidden_ND": hidden_ND, "weight_VD": self.weight_VD, "bias_V": self.bias_V}
        along = {name: t for name, t in vars(tangent).items() if t is not None}
        leaves: Keywords = {
            name: None if t is None else t.detach().requires_grad_(name in along) for name, t in given.items()
        }
        with torch.enable_grad():
            head = replace(self, weight_VD=leaves["weight_VD"], bias_V=leaves["bias_V"])
            mean_lse = fused_logits(leaves["hidden_ND"], head, targets_N, share_N, 1).mean_lse
        gradients = torch.autograd.grad(mean_lse, [leaves[name] for name in along])
        return torch.stack([(g * along[name]).sum() for name, g in zip(along, gradients, strict=True)]).sum()


@dataclass(frozen=True)
class Tangent:
    """Tangents along u of the inputs of the logits: the states, and the head's parameters where they are in S."""

    hidden_ND: Float[Tensor, "N D"]
    weight_VD: Float[Tensor, "V D"] | None
    bias_V: Float[Tensor, " V"] | None


@dataclass(frozen=True)
class Logits:
    """The part of a batch's logits that is kept.

    Attributes:
        candidates_NK: C_t = {w_t} u TopK_{K-1}(p without w_t), the true token first, the others by falling probability (Eq 14).
        z_NK: their logits, in fp32.
        log_p_NK: log of their probabilities, without a graph.
        lse_N: logsumexp(z_t), with a graph or a tangent if the logits were dense; otherwise only `mean_lse` has a graph.
        mean_lse: its mean over the targets, weighted by `share_N`.
        share_N: the targets' weights; their sum is 1.
        others: gives the logits of other candidates.
    """

    candidates_NK: Int[Tensor, "N K"]
    z_NK: Float[Tensor, "N K"]
    log_p_NK: Float[Tensor, "N K"]
    lse_N: Float[Tensor, " N"]
    mean_lse: Float[Tensor, ""]
    share_N: Float[Tensor, " N"]
    others: Callable[[Tensor], Tensor]

    def candidate_logits(self, candidates_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Logits of candidates, in fp32."""
        return self.z_NK if candidates_NK is self.candidates_NK else self.others(candidates_NK)

    def cross_entropy(self, target: SoftTarget) -> Float[Tensor, ""]:
        """CE(q_t, p_t), in nats, averaged over the targets by their weights."""
        return self.mean_lse - (self.share_N[:, None] * target.q_NK * self.candidate_logits(target.candidates_NK)).sum()

    def one_hot(self) -> SoftTarget:
        """The usual target: all mass on the true token, whatever K is."""
        q_NK = torch.zeros_like(self.z_NK)
        q_NK[:, 0] = 1
        return SoftTarget(self.candidates_NK, q_NK)

    def detach(self) -> Logits:
        """The values only, without graph or tangent."""
        return Logits(
            self.candidates_NK,
            primal(self.z_NK),
            self.log_p_NK,
            primal(self.lse_N),
            primal(self.mean_lse),
            self.share_N,
            lambda candidates_NK: primal(self.others(candidates_NK)),
        )


def primal(tensor: Tensor) -> Tensor:
    """The value of a tensor, without graph or tangent."""
    return forward_ad.unpack_dual(tensor).primal.detach()


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Convert bf16 to fp32; leave fp32 and fp64 as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def dense_logits(
    logits_NV: Float[Tensor, "N V"],
    targets_N: Int[Tensor, " N"],
    share_N: Float[Tensor, " N"],
    k: int,
    tokens: int | None = None,
) -> Logits:
    """Build `Logits` from all logits; differentiable any number of times, in both modes.

    Candidates are the first `tokens` ids; None: all.
    """
    logits_NV = at_least_fp32(logits_NV)
    with torch.no_grad():
        z_NV = primal(logits_NV)
        candidates_NK = candidates(z_NV[:, :tokens], targets_N, k)
        log_p_NK = z_NV.log_softmax(-1).gather(-1, candidates_NK)
    lse_N = logits_NV.logsumexp(-1)
    z_NK = logits_NV.gather(-1, candidates_NK)
    mean_lse = (share_N * lse_N).sum()

    def others(others_NK: Tensor) -> Tensor:
        return logits_NV.gather(-1, others_NK)

    return Logits(candidates_NK, z_NK, log_p_NK, lse_N, mean_lse, share_N, others)


@torch.compiler.disable  # a compiled learner calls it uncompiled: everything in it is fused already
def fused_logits(
    hidden_ND: Float[Tensor, "N D"],
    head: Head,
    targets_N: Int[Tensor, " N"],
    share_N: Float[Tensor, " N"],
    k: int,
    tokens: int | None = None,
) -> Logits:
    """Build `Logits` from the last hidden states in one pass over chunks of targets; differentiable once, in reverse mode.

    Candidates are the first `tokens` ids; None: all.
    """
    form, learns = (head.factor, head.cap), torch.is_grad_enabled()
    mean_lse, z_NK, log_p_NK, lse_N, candidates_NK = _Fused.apply(
        hidden_ND, head.weight_VD, head.bias_V, form, share_N, targets_N, (k, tokens), learns
    )

    def others(others_NK: Tensor) -> Tensor:
        return head.candidate_logits(hidden_ND, others_NK)

    return Logits(candidates_NK, z_NK, log_p_NK, lse_N, mean_lse, share_N, others)


def scored(
    logits_of: Callable[[slice], Float[Tensor, "n V"]],
    targets_N: Int[Tensor, " N"],
    vocabulary: int,
    scales: Sequence[float],
) -> tuple[Float[Tensor, "N G"], Bool[Tensor, " N"]]:
    """Return the NLL of every target with all logits times each of G scales, and whether it is the likeliest token.

    Args:
        logits_of: computes the logits of some targets, in fp32 or wider.
        targets_N: the true tokens.
        vocabulary: V.
        scales: inverse temperatures.
    """
    nll, likeliest = [], []
    for rows in _chunks(len(targets_N), CHUNK // vocabulary):
        z_nV = logits_of(rows)
        largest_n1, true_n1 = z_nV.amax(-1, keepdim=True), z_nV.gather(-1, targets_N[rows, None])
        likeliest.append((true_n1 >= largest_n1)[:, 0])
        # The largest logit is that of every scale: found once, a scale costs about half of its own logsumexp.
        below_nV = z_nV - largest_n1
        log_sums_nG = torch.stack([(scale * below_nV).exp_().sum(-1).log() for scale in scales], dim=-1)
        nll.append(log_sums_nG + (largest_n1 - true_n1) * log_sums_nG.new_tensor(scales))
    return torch.cat(nll), torch.cat(likeliest)


class _Fused(torch.autograd.Function):
    """(hidden_ND, weight_VD, bias_V) -> mean_lse, z_NK, and without gradient log_p_NK, lse_N, candidates_NK.

    The forward pass also computes the gradient of mean_lse, chunk by chunk, while the logits exist; backward adds the
    candidates' part. So lse_N has no gradient per token, and backward can be called only once.
    """

    @staticmethod
    def forward(
        context: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        form: tuple[float, float | None],
        share_N: Tensor,
        targets_N: Tensor,
        among: tuple[int, int | None],
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        device, (n, d), (k, tokens) = hidden_ND.device.type, hidden_ND.shape, among
        # low: the dtype of the matrix products. high: that of softmax, sums and the gradient of the states.
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        high = at_least_fp32(weight_VD).dtype
        # needs_input_grad is True under no_grad as well; `learns` is False there, and no gradient is computed.
        for_hidden, for_weight, for_bias = (learns and needed for needed in context.needs_input_grad[:3])
        lse_N, log_p_NK = hidden_ND.new_empty(n, dtype=high), hidden_ND.new_empty(n, k, dtype=high)
        candidates_NK, z_NK = targets_N.new_empty(n, k), torch.empty_like(log_p_NK)
        d_hidden_ND = hidden_ND.new_empty(n, d, dtype=high) if for_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD) if for_weight else None
        d_bias_V = None if bias_V is None or not for_bias else torch.zeros_like(bias_V)
        with torch.autocast(device, enabled=False):  # the dtypes are chosen explicitly below
            head = Head(weight_VD.to(low), None if bias_V is None else bias_V.to(low), *form)
            for rows in _chunks(n, CHUNK // len(weight_VD)):
                h_nD, share_n1 = hidden_ND[rows].to(low), share_N[rows, None].to(high)
                z_nV = head.bend(at_least_fp32(F.linear(h_nD, head.weight_VD, head.bias_V)))
                largest_n1 = z_nV.amax(dim=-1, keepdim=True)
                candidates_NK[rows] = candidates(z_nV[:, :tokens], targets_N[rows], k)
                z_NK[rows] = z_nV.gather(-1, candidates_NK[rows])
                slope = head.softcap_grad(z_nV)  # before z_nV is overwritten by p
                # Not torch.softmax: on a CPU it adds sequentially, so that over 49,152 tokens p sums to 1 only within 1e-5, the
                # same way in every row. Times the mean row of the head, which p and q share, the error of g_pre was 2.5e-4.
                p_nV = z_nV.sub_(largest_n1).exp_()  # minus the largest logit: exp cannot overflow
                sum_n1 = p_nV.sum(dim=-1, keepdim=True)
                p_nV /= sum_n1
                lse_n1 = largest_n1 + sum_n1.log()
                lse_N[rows] = lse_n1[:, 0]
                log_p_NK[rows] = z_NK[rows] - lse_n1
                if isinstance(slope, Tensor) or slope != 1:
                    p_nV *= slope  # the chain rule through `bend`
                # The true token's p is left out here; backward adds it in high precision. This avoids cancellation: for
                # confident predictions p - q is nearly 0.
                p_nV = p_nV.scatter_(-1, targets_N[rows, None], 0).to(low)
                if d_hidden_ND is not None:
                    d_hidden_ND[rows] = share_n1 * (p_nV @ head.weight_VD)
                if d_weight_VD is not None:
                    _add_product(d_weight_VD, p_nV.T, (share_n1 * h_nD).to(low))
                if d_bias_V is not None:
                    d_bias_V += (share_n1 * p_nV).sum(0)
        # The last one is s_t p_t(w_t), the true token's part of the gradient of mean_lse, which was left out above.
        context.save_for_backward(
            hidden_ND, head.weight_VD, candidates_NK, z_NK, share_N[:, None] * log_p_NK[:, :1].exp()
        )
        context.form, context.found = form, (d_hidden_ND, d_weight_VD, d_bias_V)
        context.mark_non_differentiable(log_p_NK, lse_N, candidates_NK)
        return (share_N * lse_N).sum(), z_NK, log_p_NK, lse_N, candidates_NK

    @staticmethod
    @once_differentiable
    def backward(context: Any, g_mean: Tensor, g_NK: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        if context.found is None:
            raise RuntimeError("the fused loss keeps nothing for a second backward pass")
        hidden_ND, weight_VD, candidates_NK, z_NK, p_N1 = context.saved_tensors
        # Used up here: they are scaled in place, without a second tensor as large as the head.
        (d_hidden_ND, d_weight_VD, d_bias_V), context.found = context.found, None
        # Candidate 0 is the true token: its p joins its -q (in g_NK) before any product in low precision.
        g_NK = torch.cat([g_NK[:, :1] + g_mean * p_N1, g_NK[:, 1:]], dim=-1)
        g_NK = g_NK * Head(weight_VD, None, *context.form).softcap_grad(z_NK)  # the chain rule through `bend`
        # Forward's gradients are for g_mean = 1, so they are scaled first; the candidates' part is sparse and is added to them.
        if d_hidden_ND is not None:
            d_hidden_ND = d_hidden_ND.mul_(g_mean).add_(_weighted_rows(g_NK, weight_VD, candidates_NK))
            d_hidden_ND = d_hidden_ND.to(hidden_ND.dtype)
        if d_weight_VD is not None:
            _add_to_rows(d_weight_VD.mul_(g_mean), candidates_NK, g_NK, hidden_ND)
        if d_bias_V is not None:
            d_bias_V.mul_(g_mean).index_add_(0, candidates_NK.flatten(), g_NK.flatten().to(d_bias_V.dtype))
        return d_hidden_ND, d_weight_VD, d_bias_V, None, None, None, None, None


def candidates(z_NV: Float[Tensor, "N V"], targets_N: Int[Tensor, " N"], k: int) -> Int[Tensor, "N K"]:
    """C_t = {w_t} u TopK_{K-1}(p without w_t), the true token first, the others by falling probability (Eq 14)."""
    if k == 1:
        return targets_N[:, None]
    top_NK = top_ids(z_NV, k)
    # If the true token is among the top K it is skipped, otherwise the last of them is dropped.
    next_NK = (top_NK == targets_N[:, None]).cumsum(dim=-1)[:, :-1]
    places_NK = torch.arange(k - 1, device=top_NK.device) + next_NK
    return torch.cat([targets_N[:, None], top_NK.gather(-1, places_NK)], dim=-1)


def top_ids(z_NV: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N K"]:
    """The ids of the K largest logits, by falling logit; over a large vocabulary in half the time of `torch.topk`.

    The ids form G groups {g, g + G, g + 2 G, ...}. The K largest logits lie in the K groups with the largest maxima, so they
    are sought among the M ids of these groups and of the rest that fills none.
    """
    groups = z_NV.shape[-1] // _GROUP
    if groups < 8 * k:  # few groups leave too little out
        return z_NV.topk(k, dim=-1).indices
    whole = groups * _GROUP
    maxima_NG = z_NV[:, :whole].unflatten(-1, (_GROUP, groups)).amax(1)
    best_NK = maxima_NG.topk(k, dim=-1, sorted=False).indices
    members = torch.arange(0, whole, groups, device=z_NV.device)
    rest = torch.arange(whole, z_NV.shape[-1], device=z_NV.device).expand(len(z_NV), -1)
    ids_NM = torch.cat([(best_NK[:, None] + members[:, None]).flatten(1), rest], dim=-1)
    return ids_NM.gather(-1, z_NV.gather(-1, ids_NM).topk(k, dim=-1).indices)


def gather_dot(
    x_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"], candidates_NK: Int[Tensor, "N K"]
) -> Float[Tensor, "N K"]:
    """<x_t, W_v> for the candidates of each token, without an [N, K, D] tensor; differentiable once, in reverse mode."""
    return _GatherDot.apply(x_ND, weight_VD, candidates_NK)


class _GatherDot(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_ND: Tensor, weight_VD: Tensor, candidates_NK: Tensor) -> Tensor:
        context.save_for_backward(x_ND, weight_VD, candidates_NK)
        # The products are the derivative of sum_k q_k <x, W_{v_k}> with respect to q, for which torch has a kernel.
        n, k = candidates_NK.shape
        bags = torch.arange(n, device=x_ND.device)
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x_ND.to(weight_VD.dtype), weight_VD, candidates_NK.flatten(), k * bags, bags.repeat_interleave(k), 0, -1
        )
        return products.view(n, k).to(x_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, g_NK: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, weight_VD, candidates_NK = context.saved_tensors
        d_x_ND = _weighted_rows(g_NK, weight_VD, candidates_NK).to(x_ND.dtype) if context.needs_input_grad[0] else None
        d_weight_VD = None
        if context.needs_input_grad[1]:
            d_weight_VD = torch.zeros_like(weight_VD)
            _add_to_rows(d_weight_VD, candidates_NK, g_NK, x_ND)
        return d_x_ND, d_weight_VD, None


def _weighted_rows(g_NK: Tensor, weight_VD: Tensor, candidates_NK: Tensor) -> Float[Tensor, "N D"]:
    """sum_k g_k W_{v_k}."""
    return F.embedding_bag(candidates_NK, weight_VD, per_sample_weights=g_NK.to(weight_VD.dtype), mode="sum")


def _add_to_rows(d_VD: Tensor, candidates_NK: Tensor, g_NK: Tensor, x_ND: Tensor) -> None:
    """d_{v_k} += g_k x, in place: a sparse matrix times x."""
    n, k = candidates_NK.shape
    token_NK = torch.arange(n, device=x_ND.device)[:, None].expand(-1, k)
    places = torch.stack([candidates_NK.flatten(), token_NK.flatten()])
    sparse_VN = torch.sparse_coo_tensor(places, g_NK.flatten().to(d_VD.dtype), (len(d_VD), n), check_invariants=False)
    torch.addmm(d_VD, sparse_VN, x_ND.to(d_VD.dtype), out=d_VD)


def _add_product(d_VD: Tensor, a_VN: Tensor, b_ND: Tensor) -> None:
    """d += a b, in place; chunks are summed in d's precision."""
    if a_VN.dtype == d_VD.dtype:
        d_VD.addmm_(a_VN, b_ND)
    else:
        d_VD += a_VN @ b_ND


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + max(1, size)) for start in range(0, n, max(1, size)))
