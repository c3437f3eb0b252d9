"""bf16 on the device: the learner's gradient, the tangent of the exact task and its targets, near those in fp32."""

from __future__ import annotations

import pytest
import torch
from distributed.processes import distance
from models import random_batch, tiny_model
from numerics.test_exact_task import learner_and_direction

from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot

pytestmark = pytest.mark.cuda


def test_a_bf16_pass_has_nearly_the_gradient_of_an_fp32_one(device):
    batch, found = random_batch(4, 32).to(device), []
    for bf16 in (False, True):
        learner = LanguageLearner(tiny_model().to(device), top_k=8, bf16=bf16)
        state = learner.forward(batch)
        learner.loss(state, OneHot().targets(batch, state.detach())).backward()
        found.append(torch.cat([p.grad.flatten() for _, p in learner.named_parameters()]))
    assert 1e-5 < distance(*found) < 0.05  # below the lower bound it would be fp32


def test_the_bf16_tangent_is_near_the_fp32_one(device):
    batch, found = random_batch(4, 32).to(device), []
    for bf16 in (False, True):
        learner, u, fast = learner_and_direction(tiny_model("llama-untied").eval().to(device), bf16=bf16)
        assert fast
        u = {name: part.to(device) for name, part in u.items()}
        with torch.no_grad():
            state = learner.forward(batch).detach()
            found.append(learner.candidate_tangents(batch, state, u)[:, 0])  # of the true tokens, the same in both
    assert 1e-5 < distance(*found) < 0.05
