"""What a judgement needs of a gradient, without holding it."""

from __future__ import annotations

import weakref

import pytest
import torch
from models import random_batch, tiny_model

from vpretrain.language.learner import LanguageLearner
from vpretrain.products import Products
from vpretrain.value import gradient, inner, visit_gradient


def loss_and_theta():
    """The embedding is the head's weight too, so that its gradient has two parts."""
    learner = LanguageLearner(tiny_model().double().eval(), top_k=4)
    batch = random_batch(2, 12)
    assert learner.model.get_output_embeddings().weight is learner.model.get_input_embeddings().weight
    return lambda theta: learner.evaluate(batch, theta), {n: p.detach() for n, p in learner.named_parameters()}


def test_the_parts_are_those_of_the_whole_gradient_and_none_waits_for_the_next():
    loss, theta = loss_and_theta()
    whole, seen, waiting = gradient(loss, theta), {}, []

    def visit(name, g):
        assert all(earlier() is None for earlier in waiting)
        waiting.append(weakref.ref(g))
        seen[name] = g.clone()

    visit_gradient(loss, theta, visit)
    assert seen.keys() == whole.keys()
    for name, g in whole.items():
        torch.testing.assert_close(seen[name], g, rtol=1e-12, atol=1e-15)


def test_products_are_inner_products():
    loss, theta = loss_and_theta()
    whole = gradient(loss, theta)
    v, w = ({n: torch.randn_like(g) for n, g in whole.items()} for _ in range(2))
    products = Products(v, w)
    visit_gradient(loss, theta, products.add)
    assert products() == pytest.approx([float(inner(whole, other, None)) for other in (whole, v, w)])


def test_noise_has_the_norm_of_what_it_replaces_and_one_scale():
    loss, theta = loss_and_theta()
    whole = gradient(loss, theta)

    def products(scale):
        noise = torch.Generator().manual_seed(0)
        found = Products(whole, noise=noise)
        visit_gradient(lambda at: scale * loss(at), theta, found.add)
        return found()

    one, two = products(1.0), products(2.0)
    assert one[0] == pytest.approx(float(inner(whole, whole, None)))
    assert two == pytest.approx([4 * one[0], 2 * one[1]])
    assert abs(one[1]) < 0.5 * one[0]  # it is another direction
