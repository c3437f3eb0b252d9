"""A process whose micro-batches have no targets takes part in what all do together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distributed.processes import distance, together
from models import random_batch, tiny_model
from torch.distributed.tensor import DTensor

from vpretrain import distributed
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import ExactTask, OneHot
from vpretrain.method.step import learner_losses
from vpretrain.method.strength import Strength
from vpretrain.method.tilt import centred_values, rms

pytestmark = pytest.mark.distributed


def exact():
    """The exact task along made-up values, whose scale and trust region are those of all processes."""

    def values(batch, state):
        log_p_NK = state.logits.log_p_NK
        made_NK = centred_values((7 * log_p_NK).sin(), log_p_NK)
        return made_NK / rms(made_NK, log_p_NK, batch.weights_N)

    return ExactTask(0.1, 0.15, Strength(beta=1.0, fixed=True), values)


def gradient(parallel, construction):
    """Of a step of two micro-batches: of those of the last process none has a target."""
    batches = [random_batch(2, seed=1), random_batch(2, seed=2)]
    if distributed.size() > 1 and distributed.rank() == distributed.size() - 1:
        batches = [replace(batch, weights_BT=torch.zeros_like(batch.weights_BT)) for batch in batches]
    learner = LanguageLearner(tiny_model(), top_k=8, parallel=parallel)
    for part in learner_losses(learner, construction(), batches):
        part.loss.backward()
    found = {name: p.grad for name, p in learner.named_parameters()}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
    return {name.rpartition("model.")[2]: g.numpy() for name, g in whole.items()}  # tensors die with their process


@pytest.mark.parametrize("construction", [OneHot, exact])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_its_gradient_is_that_of_the_others(parallel, construction):
    alone = gradient("ddp", construction)
    for found in together(2, gradient, parallel, construction):
        assert found.keys() == alone.keys()
        assert max(distance(torch.tensor(alone[name]), torch.tensor(g)) for name, g in found.items()) < 1e-5
