"""The exact task of vision: its tangents and values against the whole loss, its trust region, and runs of its arm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models import VISION_FAMILIES, tiny_vision_model
from worlds import vision_recipe

from vpretrain import run_recipe
from vpretrain.files import read_lines
from vpretrain.method.last_mlp import MLPEntry
from vpretrain.method.protocols import Task
from vpretrain.method.strength import Strength
from vpretrain.method.subset import alignment_subset
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import DesignerConfig, DinoConfig, IJepaConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.block_entry import BlockEntry
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.ijepa import IJepaLearner
from vpretrain.vision.task.construction import (
    Fixed,
    MovedFeatures,
    MovedRepresentations,
    MovedTarget,
    RandomMask,
    TeacherTarget,
)

IJEPA = {
    "learner": {"objective": "ijepa", "ijepa": {"predictor_width": 16, "predictor_heads": 2, "warm_up_steps": 5}},
    "stream": {"global_views": 1, "local_views": 0},
}
SMALL = {"predictor_width": 16, "predictor_heads": 2, "predictor_layers": 2}
# DINO's targets: at class tokens only; also at hidden patches; also at all patches. Each with a view's number of patch targets.
NO_PATCHES, HIDDEN, ALL = {}, {"patch_loss": 0.5}, {"patch_loss": 0.5, "hidden_patches": 0.0}
TARGETS = [(HIDDEN, 5), (ALL, 16)]


def learner_of(family, objective, patches=NO_PATCHES):
    backbone = Backbone(tiny_vision_model(family).eval())
    torch.manual_seed(0)
    if objective == "ijepa":
        learner = IJepaLearner(backbone, IJepaConfig(**SMALL))
    else:
        config = DinoConfig(outputs=24, hidden=32, bottleneck=16, **patches)
        learner = DinoLearner(backbone, config)
        learner.teacher.centre.normal_(std=0.02)
        learner.teacher.patch_centre.normal_(std=0.02)
    learner.module.eval()  # no dropped paths
    return learner


def batch_of(learner, images=3):
    torch.manual_seed(1)
    count, local = (2, 3) if isinstance(learner, DinoLearner) else (1, 0)
    views, small = torch.rand(count, images, 3, 32, 32), torch.rand(local, images, 3, 16, 16)
    places = tuple(range(images))
    return ViewBatch(views, small, tuple(map(str, places)), places, images, local, seed=5)


def direction_over(learner, names):
    generator = torch.Generator().manual_seed(2)
    return {n: torch.randn(p.shape, generator=generator) for n, p in learner.named_parameters() if n in names}


def case(family, objective, subset="last-mlp", patches=NO_PATCHES):
    learner = learner_of(family, objective, patches)
    names = alignment_subset(learner.module, subset)
    kept = learner.keep_entries(names)
    batch, u = batch_of(learner), direction_over(learner, names)
    return learner, batch, u, kept


CASES = [
    *(("dinov2", "dino", patches) for patches in (NO_PATCHES, HIDDEN, ALL)),
    *(("dinov3", "dino", patches) for patches in (NO_PATCHES, HIDDEN, ALL)),
    ("dinov2", "ijepa", NO_PATCHES),
    ("ijepa", "ijepa", NO_PATCHES),
]


@pytest.mark.parametrize("subset", ["last-mlp", "last-1"])
@pytest.mark.parametrize(("family", "objective", "patches"), CASES)
def test_the_tangents_from_the_own_pass_are_those_of_the_whole_model(family, objective, patches, subset):
    learner, batch, u, kept = case(family, objective, subset, patches)
    assert kept
    state, passes = learner.forward(batch).detach(), []
    learner.backbone.blocks[0].register_forward_hook(lambda *arguments: passes.append(1))
    found = learner.tangents(batch, state, u)
    assert not passes
    expected = learner.tangents(batch, replace(state, entry=None), u)  # the blocks run again
    assert passes
    assert float(expected.norm()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_entry_above_the_direction_is_not_used():
    learner, batch, u, _ = case("dinov2", "dino", "last-2")
    learner.keep_entries(alignment_subset(learner.module, "last-1"))
    state = learner.forward(batch).detach()
    assert state.entry is not None
    expected = learner.tangents(batch, replace(state, entry=None), u)
    torch.testing.assert_close(learner.tangents(batch, state, u), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subset", ["all", "name:embeddings"])
def test_over_parameters_below_the_blocks_no_entry_is_kept(subset):
    learner, batch, _, kept = case("dinov2", "dino", subset)
    assert not kept
    assert learner.forward(batch).entry is None


def test_an_entry_is_of_the_last_subset_that_was_asked_for():
    learner, batch, _, _ = case("dinov2", "dino", "last-2")
    for subset, kind in (("last-1", BlockEntry), ("last-mlp", MLPEntry), ("last-2", BlockEntry)):
        assert learner.keep_entries(alignment_subset(learner.module, subset))
        entry = learner.forward(batch).entry
        assert isinstance(entry, kind)
    assert entry.number == len(learner.backbone.blocks) - 2


@pytest.mark.parametrize("subset", ["last-mlp", "last-2"])
@pytest.mark.parametrize(("family", "objective"), [("dinov3", "dino"), ("ijepa", "ijepa")])
def test_the_tangents_of_a_bf16_pass_are_near_those_in_fp32(family, objective, subset):
    found = []
    for bf16 in (False, True):
        learner, batch, u, _ = case(family, objective, subset)
        learner.bf16 = bf16
        state = learner.forward(batch).detach()
        assert state.entry is not None
        found.append(learner.tangents(batch, state, u).flatten())
    plain, low = found
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(plain, low, dim=0) > 0.98


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_each_patch_of_a_global_view_has_a_tangent_with_or_without_class_tokens(family):
    learner, batch, u, kept = case(family, "dino")
    assert kept
    state = learner.forward(batch).detach()
    tokens = learner.features(batch.global_VB3HW.flatten(0, 1))[:, learner.backbone.prefix :]
    torch.testing.assert_close(state.features.flatten(0, 1), tokens)
    assert state.features.shape == (2, 3, 16, 32)
    assert learner.tangents(batch, state, u).shape == (1, 3, 16, 32)


@pytest.mark.parametrize("subset", ["last-mlp", "last-2"])
def test_the_value_changes_with_every_target_by_its_tangents(subset):
    learner, batch, u, _ = case("dinov2", "dino", subset)
    state = learner.forward(batch).detach()
    tangents = learner.tangents(batch, state, u)
    theta_S = {name: p.detach().requires_grad_() for name, p in learner.named_parameters() if name in u}
    target = torch.randn(state.features[:1].shape).requires_grad_()
    with learner.meta_mode(), learner.without_fused_kernels():
        task = Task(batch, TeacherTarget(state.teacher, MovedTarget(target, torch.tensor(2.0))))
        g_pre = torch.autograd.grad(
            learner.loss(learner.forward(batch, theta_S), task), list(theta_S.values()), create_graph=True
        )
        value = torch.stack([(u[name] * g).sum() for name, g in zip(theta_S, g_pre, strict=True)]).sum()
        (found,) = torch.autograd.grad(value, target)  # double backward
    expected = -tangents / (2.0 * 3 * 16)  # the mean over 3 images' 16 patches of a square's slope, over the variance
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("patches", "radius", "beta"), [(NO_PATCHES, 1.0, 1.0), (HIDDEN, 2.0, 1.0), (ALL, 1.0, 0.5)])
def test_features_move_against_their_tangents_as_far_as_the_trust_region_allows(patches, radius, beta):
    learner, batch, u, _ = case("dinov2", "dino", patches=patches)
    state = learner.forward(batch).detach()
    construction = MovedFeatures(learner, 0.2 / radius, Strength(beta=beta, radius=radius, fixed=True), lambda: u)
    task = construction.targets(batch, state)
    features = state.features[:1]
    way = task.target.moved.features - features
    tangents = learner.tangents(batch, state, u)
    torch.testing.assert_close(way / way.norm(), -tangents / tangents.norm(), rtol=1e-3, atol=1e-6)
    divergences = way.square().sum(-1) / (2 * features.square().mean())
    assert float(divergences.mean()) == pytest.approx(beta**2 * 0.2, rel=1e-4)
    base = Fixed().targets(batch, state)
    assert float(learner.loss(state, task) - learner.loss(state, base)) == pytest.approx(beta**2 * 0.2, rel=1e-3)
    assert torch.equal(task.target.outputs, state.teacher)  # the centre follows the teacher's own outputs
    deviation = features.square().mean().sqrt()
    torch.testing.assert_close(task.side["tilt_B"], (way / deviation).abs().mean((0, 2, 3)))


def test_at_strength_0_the_moved_target_is_where_the_student_is_and_gives_no_gradient():
    learner, batch, u, _ = case("dinov2", "dino")
    state = learner.forward(batch)
    construction = MovedFeatures(learner, 0.2, Strength(fixed=True), lambda: u)
    base, at_0 = Fixed().targets(batch, state.detach()), construction.targets(batch, state.detach())
    assert at_0.target.moved is None
    own = Task(batch, TeacherTarget(state.teacher, MovedTarget(state.features[:1].detach(), torch.tensor(1.0))))
    parameters = list(learner.module.backbone.parameters())
    parameters = [p for p in parameters if p.requires_grad]
    gradients = [
        torch.autograd.grad(learner.loss(state, task), parameters, retain_graph=True, allow_unused=True)
        for task in (base, own)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_ijepas_targets_move_against_the_tangent_of_the_prediction():
    learner, batch, u, _ = case("ijepa", "ijepa")
    state = learner.forward(batch).detach()
    construction = MovedRepresentations(learner, 0.02, Strength(beta=0.5, fixed=True), lambda: u)
    moved = construction.targets(batch, state).target.outputs - state.teacher
    tangents = learner.tangents(batch, state, u)
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.5 * math.sqrt(2 * 0.02), rel=1e-4)
    torch.testing.assert_close(moved / moved.norm(), -tangents / tangents.norm(), rtol=1e-3, atol=1e-6)


def half_square(student, target):
    return (student - target).square().mean() / 2


@pytest.mark.parametrize("largest", [0.4, 4.0])
def test_what_is_tilted_for_a_squared_error_raises_the_value_of_ijepas_smooth_l1_too(largest):
    """g_pre(t*) - g_base has a positive product with g_down = u: that of the square where errors are below 1, else less."""
    learner, batch, u, _ = case("ijepa", "ijepa")
    state = learner.forward(batch).detach()
    errors = largest * (2 * torch.rand(state.student.shape, generator=torch.Generator().manual_seed(3)) - 1)
    state = replace(state, teacher=state.student - errors)
    tangents = learner.tangents(batch, state, u)
    reach = 0.5 * float(tangents.square().mean().sqrt() / tangents.abs().max())  # no target moves farther than 0.5
    construction = MovedRepresentations(learner, reach**2 / 2, Strength(beta=1.0, fixed=True), lambda: u)
    moved = construction.targets(batch, state).target.outputs
    assert float((moved - state.teacher).abs().max()) == pytest.approx(0.5, rel=1e-3)
    theta_S = {name: p.detach().requires_grad_() for name, p in learner.named_parameters() if name in u}

    def value(target, loss_of):
        with learner.meta_mode(), learner.without_fused_kernels():
            loss = loss_of(learner.forward(batch, theta_S), target)
            g_pre = torch.autograd.grad(loss, list(theta_S.values()), create_graph=True)
            return torch.stack([(u[name] * g).sum() for name, g in zip(theta_S, g_pre, strict=True)]).sum()

    def own_loss(student_state, target):
        return learner.loss(student_state, Task(batch, TeacherTarget(target)))

    base = state.teacher.clone().requires_grad_()
    at_base = value(base, own_loss)
    (slope,) = torch.autograd.grad(at_base, base)  # double backward
    inside = errors.abs() < 1
    expected = -torch.where(inside, tangents, 0.0) / tangents.numel()
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    gain = float((value(moved, own_loss) - at_base).detach())
    of_square = [value(target, lambda s, t: half_square(s.student, t)).detach() for target in (base.detach(), moved)]
    gain_of_square = float(of_square[1] - of_square[0])
    assert gain_of_square == pytest.approx(float((tangents * (state.teacher - moved)).mean()), rel=1e-2)
    if bool(inside.all()):
        assert gain == pytest.approx(gain_of_square, rel=1e-2)
    else:
        assert 0 < gain < gain_of_square


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_the_student_does_not_see_hidden_patches_and_the_teacher_does(family):
    learner, batch, _, _ = case(family, "dino", patches=HIDDEN)
    hidden = learner.target_patches(batch)
    assert hidden.shape == (6, 5)  # 0.3 of 16 patches
    assert torch.equal(learner.target_patches(batch.restrict(rows=2)), hidden.view(2, 3, 5)[:, :2].flatten(0, 1))
    row, column = (8 * int(x) for x in divmod(int(hidden[1, 0]), 4))  # of the first view's second image
    views = batch.global_VB3HW.clone()
    views[0, 1, :, row : row + 8, column : column + 8] = torch.rand(3, 8, 8)
    before, after = (learner.forward(replace(batch, global_VB3HW=v)).detach() for v in (batch.global_VB3HW, views))
    assert torch.equal(before.student, after.student)
    changed = (before.teacher != after.teacher).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[0, 1]]


def test_without_hidden_patches_student_and_teacher_see_the_same():
    learner, batch, _, _ = case("dinov2", "dino", patches=ALL)
    assert torch.equal(learner.target_patches(batch), torch.arange(16).expand(6, -1))
    state = learner.forward(batch).detach()
    assert state.student.shape == (2, 3, 17, 24)
    torch.testing.assert_close(state.student, state.teacher)  # their weights are the same at the start


def test_the_two_global_crops_of_an_image_have_hidden_patches_and_masks_of_their_own():
    learner, batch, _, _ = case("dinov2", "dino", patches=HIDDEN)
    hidden, mask = learner.target_patches(batch).unflatten(0, (2, 3)), RandomMask(DesignerConfig()).mask(batch)
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize(("patches", "count"), TARGETS)
def test_the_loss_at_patches_is_that_of_ibot(patches, count):
    learner, batch, _, _ = case("dinov2", "dino", patches=patches)
    state = learner.forward(batch)
    task = Fixed().targets(batch, state.detach())
    plain = learner_of("dinov2", "dino")
    without = plain.loss(
        replace(state, student=state.student[:, :, :1]), Task(batch, TeacherTarget(state.teacher[:, :, :1]))
    )
    tokens = learner.teacher("tokens", batch.global_VB3HW.flatten(0, 1))[:, learner.backbone.prefix :]
    terms = []
    for image, places in enumerate(learner.target_patches(batch)):
        for m, place in enumerate(places):
            taught = learner.teacher("head", tokens[image, place][None])[0] - learner.teacher.patch_centre
            z = state.student[image // 3, image % 3, 1 + m]
            terms.append(torch.nn.functional.cross_entropy(z / 0.1, (taught / 0.04).softmax(-1)))
    assert len(terms) == 6 * count
    torch.testing.assert_close(learner.loss(state, task), without + 0.5 * torch.stack(terms).mean())


def losses(recipe):
    run_recipe(recipe)
    return [line["loss"] for line in read_lines(recipe.directory / "metrics.jsonl")]


HEAD = {"outputs": 16, "hidden": 16, "bottleneck": 8, "warm_up_steps": 5}
OBJECTIVES = {
    "dino": {},
    "ibot": {"learner": {"dino": HEAD | HIDDEN}},
    "all-patches": {"learner": {"dino": HEAD | ALL}},
    "ijepa": IJEPA,
}


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=OBJECTIVES)
def test_without_strength_the_arm_is_fixed_bit_for_bit_and_with_it_not(tmp_path, changes):
    fixed = losses(vision_recipe(tmp_path, name="fixed", arm="fixed", **changes))
    none = losses(vision_recipe(tmp_path, name="none", arm="v", value={"strength": 0.0}, **changes))
    full = losses(vision_recipe(tmp_path, name="full", arm="v", value={"strength": 1.0}, **changes))
    assert none == fixed
    assert full[:2] == fixed[:2]  # before the optimizer has statistics there is no direction
    assert full != fixed


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_strength_is_judged_on_the_images_of_the_feedback(tmp_path, changes):
    recipe = vision_recipe(tmp_path, arm="v", value={"every_steps": 4}, budget={"steps": 24}, **changes)
    run_recipe(recipe)
    lines = read_lines(recipe.directory / "metrics.jsonl")
    judged = [line["step"] for line in lines if "strength" in line]
    assert judged[0] == 8
    assert all(0 <= line["strength"] <= 1 for line in lines if "strength" in line)


def losses_of_feedback(recipe):
    """Of a batch, and of each of its images."""
    parts = assemble(recipe)
    (batch,) = parts.feedback.next().values()
    at = parts.meta.theta_at()
    with parts.learner.meta_mode():
        return [float(parts.learner.evaluate(b, at).detach()) for b in (batch, *batch.apart())]


def test_a_batch_of_feedback_is_the_mean_of_its_images(tmp_path):
    whole, *apart = losses_of_feedback(vision_recipe(tmp_path, arm="v", feedback={"segmentation": 0.0}))
    assert len(apart) == 4
    assert sum(apart) / 4 == pytest.approx(whole, rel=0.05)  # of pixels: images have nearly equally many with a depth


def test_the_loss_of_a_feedback_image_does_not_depend_on_the_others_of_its_batch(tmp_path):
    whole, *apart = losses_of_feedback(vision_recipe(tmp_path, arm="v", feedback={"depth": 0.0}))
    assert sum(apart) / 4 == pytest.approx(whole, rel=1e-5)  # every pixel of a scene has a class
