"""The retention guard: the projection is what its derivation says, and the engines see nothing else."""

from __future__ import annotations

import pytest
import torch
from models import random_batch
from test_engines import PARTS, alignment, gradient_by, setting

from vpretrain.doctor import designer_gradient, relative_errors
from vpretrain.guard import guarded
from vpretrain.value import Align, Valued, inner


def vectors(count: int, *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(n, generator=generator, dtype=torch.float64) for name, n in (("a", 3), ("b", 4))}
        for _ in range(count)
    ]


@pytest.mark.parametrize("adamw", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_guarded_gradient_is_the_best_that_does_not_raise_the_general_loss(seed, adamw):
    g_down, g_gen, spread, *others = vectors(300, seed=seed)
    P = {n: v.square() + 0.01 for n, v in spread.items()} if adamw else None
    ours = guarded(g_down, g_gen, P)
    if inner(g_down, g_gen, P) >= 0:
        assert ours is g_down
        return
    u = Align("dot", P).direction(ours, None)
    assert float(inner(u, g_gen, None)) == pytest.approx(0, abs=1e-12)  # a learner step along it leaves L_gen as it is
    weight = P or {n: torch.ones_like(v) for n, v in g_down.items()}
    share = float(inner(g_down, g_gen, P) / inner(g_gen, g_gen, P))
    for n in u:  # the projection of u itself, as it is written for P = 1
        torch.testing.assert_close(u[n], weight[n] * g_down[n] - share * weight[n] * g_gen[n])
    cosine = Align("cosine", P)
    allowed = [g for g in others if inner(g, g_gen, P) >= 0]
    assert len(allowed) > 50
    assert max(float(cosine(g_down, g)) for g in allowed) <= float(cosine(g_down, ours)) + 1e-12
    distance = [float(inner(d, d, P)) for g in [ours, *allowed] for d in [{n: g[n] - g_down[n] for n in g}]]
    assert min(distance) == distance[0]


@pytest.mark.parametrize("engine", ["jvp", "finite_difference", "double_backward"])
@pytest.mark.parametrize("kind", ["dot", "cosine", "penalised"])
@pytest.mark.parametrize("adamw", [False, True])
def test_with_the_guard_every_engine_has_the_gradient_of_double_backward_along_the_projected_direction(
    engine, kind, adamw
):
    learner, construction, at, g_down, P = setting(adamw=adamw)
    generator = torch.Generator().manual_seed(2)
    g_gen = {n: torch.randn(g.shape, generator=generator) * 0.01 for n, g in g_down.items()}
    if inner(g_down, g_gen, P) > 0:
        g_gen = {n: -g for n, g in g_gen.items()}
    projected = guarded(g_down, g_gen, P)
    assert float(Align("cosine", P)(g_down, g_gen)) < 0
    assert float(Align("cosine", P)(projected, g_gen)) == pytest.approx(0, abs=1e-6)

    with learner.meta_mode(), learner.plain():  # <u, g_pre> by autograd through autograd, u being a constant
        theta = {n: p.detach().requires_grad_() for n, p in at.items()}
        batch = random_batch()
        state = learner.forward(batch, theta)
        task = construction.targets(batch, state.detach())
        loss = learner.loss(state, task)
        g_pre = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
        u = alignment(kind, P).direction(projected, {n: g.detach() for n, g in g_pre.items()})
        value = sum((u[n] * g).sum() for n, g in g_pre.items())
        oracle = designer_gradient(Valued(value.detach(), value, task, u), construction.designer, PARTS)
    if kind == "dot":
        assert float(inner(u, g_gen, None)) >= -1e-6 * float(inner(u, u, None) * inner(g_gen, g_gen, None)) ** 0.5
    options = {"relative_step": 3e-4} if engine == "finite_difference" else {}
    ours, _ = gradient_by(engine, kind, learner, construction, at, projected, P, **options)
    errors = relative_errors(ours, oracle)
    assert max(errors.values()) <= (3e-3 if engine == "finite_difference" else 1e-5), errors
