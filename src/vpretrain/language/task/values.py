"""a_t(v): how much target mass on candidate v at token t adds to the value, in one unit for every Align and metric.

    a_t(v) = -(D_u z_t(v) - sum_w p_t(w) D_u z_t(w))

It is centred under p_C (p restricted to the candidates), where the tangent of the logsumexp cancels, and scaled to RMS 1 under
p_C over the micro-batch; see `vpretrain.method.tilt`.

Shapes: N targets, K candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner, LanguageState
from vpretrain.method.protocols import Parameters
from vpretrain.method.tilt import centred_values, rms


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
