"""Cross-entropy to sparse soft targets (Eq 15). Shapes: N targets, V vocabulary, K candidates."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SoftTarget:
    """A distribution over K candidates a token; the first candidate is the true token.

    Attributes:
        candidates_NK: token ids C_t.
        q_NK: their probabilities; every row sums to 1.
    """

    candidates_NK: Int[Tensor, "N K"]
    q_NK: Float[Tensor, "N K"]

    def detach(self) -> SoftTarget:
        """Without a graph to the designer."""
        return SoftTarget(self.candidates_NK, self.q_NK.detach())


def at_least_fp32(tensor: Tensor) -> Tensor:
    """bf16 becomes fp32; fp32 and fp64 stay."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def soft_cross_entropy(logits_NV: Float[Tensor, "N V"], target: SoftTarget) -> Float[Tensor, " N"]:
    """CE(q_t, p_t) = logsumexp(z_t) - sum_{v in C_t} q_t(v) z_t(v), in nats, fp32 (the sum of q is 1).

    With q one-hot it equals the usual loss bit for bit, whatever K is: all other terms are exact zeros.
    """
    logits_NV = at_least_fp32(logits_NV)
    return logits_NV.logsumexp(-1) - (target.q_NK * logits_NV.gather(-1, target.candidates_NK)).sum(-1)
