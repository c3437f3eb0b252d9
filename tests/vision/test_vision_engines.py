"""The value engines on vision learners against double backward, and that against finite differences over phi."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import VISION_FAMILIES, tiny_vision_model
from numerics.test_engines import central_difference

from vpretrain.inspection.doctor import designer_gradient, relative_errors
from vpretrain.method.protocols import Task
from vpretrain.method.value import ENGINES, Align
from vpretrain.vision.config import DinoConfig, IJepaConfig
from vpretrain.vision.inspection.doctor import engine_case_of
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.ijepa import IJepaLearner, draw_blocks
from vpretrain.vision.model.learner import ViewState
from vpretrain.vision.task.construction import TeacherTarget

PREDICTOR = IJepaConfig(predictor_width=16, predictor_heads=2, predictor_layers=1)


def setting(family: str, subset: str, dtype: torch.dtype = torch.float32, objective: str = "dino"):
    torch.manual_seed(0)
    backbone = Backbone(tiny_vision_model(family))
    if objective == "ijepa":
        learner = IJepaLearner(backbone, PREDICTOR)
    else:
        learner = DinoLearner(backbone, DinoConfig(outputs=24, hidden=32, bottleneck=16))
        learner.teacher.centre.normal_(std=0.02)
    learner.module.to(dtype)
    learner.teacher.to(dtype)
    torch.set_default_dtype(dtype)
    try:
        case = engine_case_of(learner, subset)
    finally:
        torch.set_default_dtype(torch.float32)
    return case


def gradient_by(engine, kind, case, metric=None):
    with case.problem.learner.meta_mode():
        valued = engine(replace(case.problem, align=Align(kind, metric)))
        return designer_gradient(valued, case.designer, {}), float(valued.value)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("subset", ["last-1", "last-2", "all"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_reverse_over_jvp_equals_double_backward(family, subset, kind):
    case = setting(family, subset)
    ours, value = gradient_by(ENGINES["jvp"], kind, case)
    oracle, oracle_value = gradient_by(ENGINES["double_backward"], kind, case)
    assert oracle["all"].norm() > 0
    assert relative_errors(ours, oracle)["relative_error"] <= 1e-5
    if kind == "cosine":  # of a dot product the jvp leaves out the local crops' part, which is constant in phi
        assert value == pytest.approx(oracle_value, rel=1e-4, abs=1e-6)


def test_the_value_is_that_of_the_whole_loss_over_all_pairs_of_views():
    case = setting("dinov2", "last-2", torch.float64)
    learner, problem = case.problem.learner, case.problem
    assert len(problem.batch.local_VB3HW) == problem.batch.local_views == 3
    at = {name: p.detach().requires_grad_() for name, p in problem.theta_S.items()}
    with learner.meta_mode():
        inputs = problem.inputs()
        state = learner.forward(inputs, at)
        target = ((state.teacher - learner.teacher.centre) / learner.config.teacher_temperature).softmax(-1)
        assert target.shape == (2, len(state.student[0]), 1, 24)  # no hidden patches
        target, student = target[:, :, 0], state.student[:, :, 0]
        pairs = [(target[0], student[1]), (target[1], student[0])]
        pairs += [(target[t], state.local[s]) for t in range(2) for s in range(3)]
        losses = [-(q * (z / learner.config.student_temperature).log_softmax(-1)).sum(-1).mean() for q, z in pairs]
        gradients = torch.autograd.grad(sum(losses) / 8, list(at.values()), allow_unused=True)
        by_hand = sum((g * problem.g_down[n]).sum() for n, g in zip(at, gradients, strict=True) if g is not None)
    _, value = gradient_by(ENGINES["double_backward"], "dot", case)
    assert value == pytest.approx(float(by_hand.detach()), rel=1e-6)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("subset", ["last-1", "last-2"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_finite_difference_is_close_at_its_swept_step(family, subset, kind):
    case = setting(family, subset)
    oracle, _ = gradient_by(ENGINES["double_backward"], kind, case)
    errors = [
        relative_errors(gradient_by(partial(ENGINES["finite_difference"], relative_step=rho), kind, case)[0], oracle)[
            "relative_error"
        ]
        for rho in (3e-4, 1e-3, 3e-3)
    ]
    assert min(errors) <= 1e-2, errors


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_oracle_equals_finite_differences_over_phi(kind):
    case = setting("dinov2", "last-2", torch.float64)
    gradients, _ = gradient_by(ENGINES["double_backward"], kind, case)
    phi = list(case.designer.parameters())
    direction = [torch.randn(p.shape, dtype=p.dtype) for p in phi]
    predicted = float(gradients["all"] @ torch.cat([d.flatten() for d in direction]))
    # The teacher sees the learned views, but its outputs are targets, and those are constant in phi by choice.
    prepare = case.problem.learner.prepare
    fixed = prepare(case.problem.construction.inputs(case.problem.batch), case.problem.theta_S).prepared[2]
    case.problem.learner.prepare = lambda inputs, at: _with_teacher(prepare(inputs, at), fixed)
    measured = central_difference(
        lambda: gradient_by(ENGINES["double_backward"], kind, case)[1], phi, direction, h=1e-5
    )
    assert predicted == pytest.approx(measured, rel=1e-4)


def _with_teacher(inputs, teacher):
    return replace(inputs, prepared=(*inputs.prepared[:2], teacher))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_blocks_below_the_subset_may_be_run_once(family):
    backbone = Backbone(tiny_vision_model(family).eval())
    pixels = torch.rand(2, 3, 32, 32)
    plain = backbone.model(pixel_values=(pixels - backbone.mean) / backbone.std).last_hidden_state
    torch.testing.assert_close(backbone(pixels), plain)
    torch.testing.assert_close(backbone.upper(*backbone.lower(pixels, 2), 2), plain)
    assert backbone.grid(plain, 32, 32).shape == (2, 32, 4, 4)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("subset", ["last-1", "last-2", "all"])
@pytest.mark.parametrize("family", ["dinov2", "ijepa"])
def test_the_engines_agree_on_ijepa_too(family, subset, kind):
    case = setting(family, subset, objective="ijepa")
    oracle, _ = gradient_by(ENGINES["double_backward"], kind, case)
    ours, _ = gradient_by(ENGINES["jvp"], kind, case)
    assert oracle["all"].norm() > 0
    assert relative_errors(ours, oracle)["relative_error"] <= 1e-5
    if subset != "all":
        steps = [partial(ENGINES["finite_difference"], relative_step=rho) for rho in (3e-4, 1e-3, 3e-3)]
        errors = [relative_errors(gradient_by(step, kind, case)[0], oracle)["relative_error"] for step in steps]
        assert min(errors) <= 1e-2, errors


def test_ijepa_predicts_from_the_view_what_the_teacher_makes_of_the_picture():
    case = setting("dinov2", "last-1", objective="ijepa")
    learner = case.problem.learner
    learner.module.eval()
    masked = case.problem.construction.inputs(case.problem.batch)
    assert torch.equal(learner.teach(masked), learner.teach(case.problem.batch))
    assert not torch.equal(learner.forward(masked).student, learner.forward(case.problem.batch).student)


def test_ijepas_targets_are_normalised_however_the_teachers_last_norm_scales_them():
    case = setting("dinov2", "last-1", objective="ijepa")
    learner = case.problem.learner
    learner.teacher.backbone.norm.weight.fill_(3.0)
    learner.teacher.backbone.norm.bias.fill_(1.0)
    targets = learner.teach(case.problem.batch)
    mean, variance = targets.mean(-1), targets.var(-1, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)


def test_ijepas_loss_is_half_the_square_of_a_small_error_and_linear_in_a_large_one():
    learner = setting("dinov2", "last-1", objective="ijepa").problem.learner
    taught = torch.ones(1, 1, 1, 2)
    state = ViewState(taught + torch.tensor([3.0, -0.5]), taught, None)
    assert float(learner.loss(state, Task(None, TeacherTarget(taught)))) == pytest.approx((2.5 + 0.125) / 2)


def test_context_and_target_blocks_are_disjoint_and_follow_from_the_draw():
    config = IJepaConfig()
    blocks = draw_blocks(config, (14, 14), 8, seed=3)
    assert blocks.target_BMN.shape[:2] == (8, 4)
    assert 0.13 * 196 <= blocks.target_BMN.shape[2] <= 0.22 * 196
    for context, targets in zip(blocks.context_BC, blocks.target_BMN, strict=True):
        assert not set(context.tolist()) & set(targets.flatten().tolist())
        assert len(set(context.tolist())) == len(context) > 40
    assert torch.equal(draw_blocks(config, (14, 14), 8, seed=3).context_BC, blocks.context_BC)
    assert not torch.equal(draw_blocks(config, (14, 14), 8, seed=4).target_BMN[0, 0], blocks.target_BMN[0, 0])
