"""Fused attention in the learner's own passes, beside the plain form (MATH) that tangents need."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distributed.processes import distance
from models import random_batch, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot
from vpretrain.method.subset import alignment_subset

pytestmark = pytest.mark.cuda
FLASH = SDPBackend.FLASH_ATTENTION


@pytest.fixture
def learner(device):
    """In bf16, which flash attention on a GPU needs, and with as many keys as queries."""
    return LanguageLearner(tiny_model("gpt2").eval().to(device), top_k=8, bf16=True)


@pytest.fixture
def batch(device):
    """One document per row: packed rows have a mask, which flash attention does not take."""
    return replace(random_batch(4, 32), positions_BT=torch.arange(32).expand(4, -1)).to(device)


def pass_and_gradient(learner, batch):
    """States of the learner's own pass, and its gradient."""
    learner.module.zero_grad()
    state = learner.forward(batch)
    learner.loss(state, OneHot().targets(batch, state.detach())).backward()
    return state.hidden_BTD.detach(), torch.cat([p.grad.flatten() for _, p in learner.named_parameters()])


def test_flash_attention_gives_the_states_and_gradients_of_the_plain_form(learner, batch):
    with sdpa_kernel(FLASH):
        found = pass_and_gradient(learner, batch)
    with sdpa_kernel(SDPBackend.MATH):
        expected = pass_and_gradient(learner, batch)
    assert distance(expected[0], found[0]) < 0.02
    assert distance(expected[1], found[1]) < 0.05


def test_a_tangent_beside_flash_attention_is_that_of_the_plain_form(learner, batch):
    names = alignment_subset(learner.module, "last-1")
    at = {name: p.detach() for name, p in learner.named_parameters() if name in names}
    u = {name: torch.randn_like(p) for name, p in at.items()}

    def derivative():
        with learner.meta_mode():
            task = OneHot().targets(batch, learner.observe(batch))
            return learner.directional_derivative(batch, at, u, whole=True)(task)

    with sdpa_kernel(FLASH):
        before, _ = pass_and_gradient(learner, batch)
        found = derivative()
        after, _ = pass_and_gradient(learner, batch)
    torch.testing.assert_close(after, before)  # flash attention is back
    with sdpa_kernel(SDPBackend.MATH):
        expected = derivative()
    assert float(expected.abs()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_flash_attention_alone_has_no_tangent(device):
    """Otherwise the plain form would be needless."""
    q = torch.randn(1, 2, 16, 8, device=device, dtype=torch.bfloat16)
    attention = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(FLASH), pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: attention(x, x, x, is_causal=True), (q,), (q,))
    with sdpa_kernel(SDPBackend.MATH):
        torch.func.jvp(lambda x: attention(x, x, x, is_causal=True), (q,), (q,))
