"""What a judgement needs of a gradient, without holding it."""

from __future__ import annotations

import weakref

import pytest
import torch
from models import random_batch, tiny_model

from vpretrain.language.model.learner import LanguageLearner
from vpretrain.method.products import Products, Scaled
from vpretrain.method.value import gradient, inner, visit_gradient


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


@pytest.mark.parametrize(("precision", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_what_is_held_of_a_gradient_is_it_times_the_metric(precision, near):
    """A parameter that a loss does not touch has 0; a metric is none where the optimizer has not seen a parameter."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (2**11, 2**11 + 3), "b": (7,), "untouched": (3,)}
    theta, x, y, P = (
        {n: torch.randn(s, generator=generator, dtype=precision) for n, s in shapes.items()} for _ in range(4)
    )
    del x["untouched"], P["b"]
    one = Scaled(theta, P)
    visit_gradient(lambda at: sum((at[n] * x[n]).sum() for n in x), theta, one.add)
    two = Scaled(theta, P, one.held)
    visit_gradient(lambda at: sum((at[n] * y[n]).sum() for n in shapes), theta, two.add)
    x["untouched"] = torch.zeros_like(y["untouched"])
    square, own = one()
    assert (square, own) == pytest.approx((float(inner(x, x, P)), float(inner(x, x, None))), rel=near)
    square, own, product = two()
    scale = float(inner(y, y, P).abs())
    assert (square, product) == pytest.approx((float(inner(y, y, P)), float(inner(y, x, P))), abs=near * scale)
    for n, held in one.held.items():
        torch.testing.assert_close(held.to(precision), P[n] * x[n] if n in P else x[n], rtol=max(near, 4e-3), atol=near)
