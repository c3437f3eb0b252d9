"""Vision runs in miniature: the firewall, equal views, masks of ones, resume, export, wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from sessions import apart, assert_bit_equal, assert_same_end, held, session_of, start_of, stopped_after, trajectory
from transformers import AutoModel
from worlds import vision_recipe

from vpretrain import UserError, run_recipe
from vpretrain.files import read_lines
from vpretrain.method.protocols import Task
from vpretrain.recipe import parse_recipe, save_recipe, with_overrides
from vpretrain.run import session as run_session
from vpretrain.run.dry_run import planned_steps
from vpretrain.run.state import StepSnapshot
from vpretrain.vision.arms import ARMS
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import DesignerConfig, SourceConfig
from vpretrain.vision.data.source import Pool, open_images
from vpretrain.vision.inspection.check import check, estimate_memory
from vpretrain.vision.model.heads import Shift, label_loss, pixel_depths, pixel_outputs, valid_depth
from vpretrain.vision.task.construction import LearnedViews


def test_a_mask_of_ones_equals_the_fixed_views_bit_for_bit(tmp_path):
    fixed, *_ = trajectory(vision_recipe(tmp_path, arm="fixed"))

    def all_ones(parts):
        parts.construction.mask = lambda batch: torch.ones_like(batch.global_VB3HW[:, :, :1])
        parts.meta = None

    ones, *_ = trajectory(vision_recipe(tmp_path), all_ones)
    assert_bit_equal(fixed, ones)


AS_FAR = {"v": 0.29, "v-paper": 0.024, "random-mask": 0.19, "regulariser-only": 0.024, "random-feedback": 0.33}


def test_refitted_biases_leave_no_common_gradient_and_no_trace_in_the_heads(tmp_path):
    plain, refitted = (
        assemble(vision_recipe(tmp_path, arm="v", feedback={"refit_biases": refit})).feedback for refit in (False, True)
    )
    (before,), (after,) = plain.next().values(), refitted.next().values()
    grid = refitted._grid(refitted.learner.features(after.labelled.image_B3HW))
    for task in ("segmentation", "depth"):
        assert torch.equal(after.heads[task][0][-1].bias, before.heads[task][-1].bias)
        slopes = []
        for head in (before.heads[task], after.heads[task][0]):
            shift = Shift(head[-1].out_channels)
            if head is not before.heads[task]:
                shift.load_state_dict(after.heads[task][1].state_dict())
            loss = label_loss(task, torch.nn.Sequential(head, shift), grid, after.labelled)
            slopes.append(float(torch.autograd.grad(loss, shift.bias)[0].norm()))
        assert slopes[1] < 0.02 * slopes[0]


@pytest.mark.parametrize("subset", ["last-mlp", "last-1"])
def test_gradients_of_a_batch_with_refitted_biases_take_no_second_pass(tmp_path, subset):
    parts = assemble(vision_recipe(tmp_path, arm="v", feedback={"refit_biases": True}, value={"subset": subset}))
    learner, passes = parts.learner, []
    learner.backbone.blocks[0].register_forward_hook(lambda *arguments: passes.append(1))
    (batch,) = parts.feedback.next().values()
    theta, passed = parts.meta.theta_at(), len(passes)
    for kept in (batch, *batch.apart()):
        with learner.meta_mode():  # without drop-path
            both = (kept, replace(kept, entry=None))
            gradients = [learner.gradient(partial(learner.evaluate, seen), theta) for seen in both]
        for name, g in gradients[1].items():
            torch.testing.assert_close(gradients[0][name], g, rtol=1e-4, atol=1e-6)
    assert len(passes) - passed == 1 + len(batch.labelled)  # those without entry


def test_a_batch_with_refitted_biases_keeps_its_heads_while_others_are_drawn(tmp_path):
    parts = assemble(vision_recipe(tmp_path, arm="v", feedback={"refit_biases": True}))
    (batch,) = parts.feedback.next().values()
    theta_S = parts.meta.theta_at()
    with parts.learner.meta_mode(), torch.no_grad():
        before = parts.learner.evaluate(batch, theta_S)
        parts.feedback.next()
        assert torch.equal(parts.learner.evaluate(batch, theta_S), before)


@pytest.mark.parametrize("arm", AS_FAR)
def test_every_arm_sees_the_same_images_and_ends_elsewhere(tmp_path, arm):
    """As far from the end of `fixed`, relative to the way that it has gone, as it was when this was written."""
    recipe = vision_recipe(tmp_path, arm="fixed")
    fixed, seen_fixed, _ = trajectory(recipe)
    other, seen, parts = trajectory(vision_recipe(tmp_path, arm=arm, value={"strength": 1.0}))
    for (mine,), (theirs,) in zip(seen, seen_fixed, strict=True):
        assert torch.equal(mine.global_VB3HW, theirs.global_VB3HW)
        assert torch.equal(mine.local_VB3HW, theirs.local_VB3HW)
    assert apart(fixed, other, start_of(recipe)) == pytest.approx(AS_FAR[arm], rel=0.3)
    if arm != "random-mask":
        assert parts.meta.updates == 3


FROZEN = {
    "v": ({"value": {"strength": 0.0}}, {"value": {"strength": 1.0}}),
    "v-paper": ({"designer": {"lr": 1e-30}}, {}),
}
LEAST = {"v": 0.02, "v-paper": 0.0001}


@pytest.mark.parametrize("arm", FROZEN)
def test_firewall_poisoned_labels_change_nothing_but_the_task(tmp_path, arm):
    frozen, free = FROZEN[arm]

    def poison(parts):
        for pool in (parts.feedback._for_heads, parts.feedback._for_meta):
            images = pool[range(len(pool))]
            labels, depths = torch.full_like(images.label_BHW, 1), torch.full_like(images.depth_BHW, 9.0)
            pool._kept = dict(enumerate(zip(images.image_B3HW, labels, depths, strict=True)))

    clean, *_ = trajectory(vision_recipe(tmp_path, arm=arm, **frozen))
    poisoned, *_ = trajectory(vision_recipe(tmp_path, arm=arm, **frozen), poison)
    assert_bit_equal(clean, poisoned)
    recipe = vision_recipe(tmp_path, arm=arm, **free)
    moving, *_ = trajectory(recipe)
    moving_poisoned, *_ = trajectory(vision_recipe(tmp_path, arm=arm, **free), poison)
    assert apart(moving, moving_poisoned, start_of(recipe)) > LEAST[arm]


def test_a_meta_update_leaves_no_trace_on_learner_and_teacher(tmp_path):
    parts = assemble(vision_recipe(tmp_path))
    batches = parts.stream.next()
    before = {n: v.clone() for m in (parts.learner.module, parts.learner.teacher) for n, v in m.state_dict().items()}
    random, training = torch.get_rng_state(), parts.learner.module.training
    designer = [p.detach().clone() for p in parts.construction.parameters()]
    heads = {n: v.clone() for n, v in parts.feedback.heads.state_dict().items()}
    record = parts.meta(batches)
    assert record["g_down_norm"] > 0
    after = {n: v for m in (parts.learner.module, parts.learner.teacher) for n, v in m.state_dict().items()}
    assert_bit_equal(before, after)
    assert torch.equal(torch.get_rng_state(), random)
    assert parts.learner.module.training == training
    assert all(p.grad is None for _, p in parts.learner.named_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(designer, parts.construction.parameters(), strict=True))
    assert any(not torch.equal(heads[n], v) for n, v in parts.feedback.heads.state_dict().items())


def test_heads_and_their_optimizer_are_copied_at_meta_updates_only(tmp_path, monkeypatch):
    copied = []

    class Watched(StepSnapshot):
        def __init__(self, parts, *, updates):
            super().__init__(parts, updates=updates)
            copied.append({name for name in self.groups if name.startswith("heads")})

    monkeypatch.setattr(run_session, "StepSnapshot", Watched)
    session_of(vision_recipe(tmp_path)).run()
    assert copied == [{"heads", "heads-optimizer"}, set()] * 3


def test_the_copy_of_the_heads_is_not_fitted_with_them(tmp_path):
    parts = assemble(vision_recipe(tmp_path))
    parts.feedback.next()
    before = {name: value.clone() for name, value in parts.feedback.heads.state_dict().items()}
    copy = StepSnapshot(parts, updates=True).groups
    parts.feedback.next()
    assert_bit_equal(copy["heads"], before)
    assert any(not torch.equal(before[name], value) for name, value in parts.feedback.heads.state_dict().items())


def test_views_and_targets_reach_the_learner_detached(tmp_path, monkeypatch):
    from vpretrain.vision.model.dino import DinoLearner

    inputs, forward = [], DinoLearner.forward
    monkeypatch.setattr(DinoLearner, "forward", lambda self, x, p=None: inputs.append((x, p)) or forward(self, x, p))
    trajectory(vision_recipe(tmp_path, value={"every_steps": 100}))
    learned_from = [x for x, parameters in inputs if parameters is None][-6:]
    assert all(x.mask_VB1HW is not None for x in learned_from)
    assert not any(x.global_VB3HW.requires_grad for x in learned_from)


@pytest.mark.parametrize(("kind", "zero"), [("linear", False), ("linear", True), ("conv", True)])
def test_heads_may_start_from_zero_and_then_give_no_direction_before_they_are_fitted(tmp_path, kind, zero):
    recipe = vision_recipe(tmp_path, arm="v", feedback={"head": kind, "zero_head": zero})
    feedback = assemble(recipe).feedback

    def slopes():
        grid = torch.rand(2, 32, 4, 4, requires_grad=True)
        found = [
            torch.autograd.grad(pixel_outputs(head, grid, 8, 8).sum(), grid)[0] for head in feedback.heads.values()
        ]
        return [float(slope.abs().max()) for slope in found]

    feedback.heads.eval()
    assert [slope > 0 for slope in slopes()] == [not zero] * 2
    feedback.next()
    assert all(slope > 0 for slope in slopes())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_depth_head_starts_from_the_median_depth_so_that_errors_have_both_signs(tmp_path, kind):
    feedback = assemble(vision_recipe(tmp_path, arm="v", feedback={"head": kind})).feedback
    depth = feedback._for_heads[range(8)].depth_BHW
    with torch.no_grad():
        started = pixel_depths(feedback.heads["depth"].eval(), torch.rand(1, 32, 4, 4), 8, 8)
    valid = depth[valid_depth(depth)]
    torch.testing.assert_close(started, valid.median().float().expand_as(started))
    assert 0.45 < float((valid > started[0, 0, 0]).float().mean()) < 0.55


@pytest.mark.parametrize(
    ("arm", "strength", "size", "warned"),
    [
        ("v", "auto", 4, 0), ("v", "auto", 5, 1), ("v", 1.0, 5, 0), ("random-feedback", "auto", 8, 1),
        ("fixed", "auto", 8, 0),
    ],
)  # fmt: skip
def test_a_strength_that_would_be_judged_by_the_images_of_the_direction_is_warned_of(
    tmp_path, monkeypatch, arm, strength, size, warned
):
    warnings = []
    monkeypatch.setattr("vpretrain.vision.assemble.warn", warnings.append)
    assemble(vision_recipe(tmp_path, arm=arm, value={"strength": strength}, feedback={"batch_size": size}))
    assert len(warnings) == warned
    assert all("feedback.meta has 8 images" in line and "feedback.batch_size=4" in line for line in warnings)


def test_of_three_images_no_smaller_batch_can_be_advised(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("vpretrain.vision.assemble.warn", warnings.append)
    few = {"batch_size": 2, "meta": [{"scenes": 3, "seed": 3, "size": 32}]}
    assemble(vision_recipe(tmp_path, arm="v", feedback=few))
    (line,) = warnings
    assert line.endswith("gave the direction, too: give more images")


def test_heads_have_batches_of_their_own_size_and_may_be_fitted_before_the_first_update_only(tmp_path):
    own = {"head_batch_size": 3, "head_steps": 0, "first_head_steps": 7}
    feedback, sizes = assemble(vision_recipe(tmp_path, arm="v", feedback=own)).feedback, []
    fit = feedback._fit
    feedback._fit = lambda images, grid: sizes.append(len(images)) or fit(images, grid)
    for _ in range(2):
        (batch,) = feedback.next().values()
        assert len(batch.labelled) == 4
    assert sizes == [3] * 7
    with pytest.raises(UserError, match=r"the heads are never fitted: give feedback\.first_head_steps or"):
        vision_recipe(tmp_path, feedback=own | {"first_head_steps": 0})


def test_the_first_fit_of_the_heads_makes_features_of_no_more_than_an_epoch(tmp_path):
    own, passes = {"first_head_steps": 20, "refit_biases": False}, []
    feedback = assemble(vision_recipe(tmp_path, arm="v", feedback=own)).feedback
    features = feedback.learner.features
    feedback.learner.features = lambda pixels: passes.append(len(pixels)) or features(pixels)
    feedback.next()
    assert passes == [4, 4, 4]  # two batches of the eight images, and that of the step before the update
    assert feedback.head_steps == 21


def test_head_and_meta_batches_are_disjoint(tmp_path):
    feedback = assemble(vision_recipe(tmp_path)).feedback
    assert not set(feedback._for_heads.scene_N.tolist()) & set(feedback._for_meta.scene_N.tolist())
    clash = vision_recipe(tmp_path, feedback={"meta": [{"scenes": 8, "seed": 2, "size": 32}]})
    with pytest.raises(UserError, match=r"feedback.meta and feedback.heads show the same scenes \(seed 2\)"):
        assemble(clash)


def test_the_heads_see_the_images_of_feedback_heads_and_g_down_comes_from_those_of_feedback_meta(tmp_path):
    recipe = vision_recipe(tmp_path)
    heads, meta = (set(Pool(x, None).scene_N.tolist()) for x in (recipe.feedback.heads, recipe.feedback.meta))
    feedback, fitted = assemble(recipe).feedback, set()
    fit = feedback._fit
    feedback._fit = lambda images, grid: fitted.update(images.scene_B.tolist()) or fit(images, grid)
    (batch,) = feedback.next().values()
    assert fitted == heads
    assert set(batch.labelled.scene_B.tolist()) <= meta


def test_the_heads_are_fitted_by_their_own_loss_alone(tmp_path):
    """The passes that judge the strength go backward through the heads as well."""
    ends = []
    for judged in (False, True):
        parts = assemble(vision_recipe(tmp_path))
        (batch,) = parts.feedback.next().values()
        if judged:
            with parts.learner.meta_mode():
                evaluate = partial(parts.learner.evaluate, batch)
                parts.learner.visit_gradient(evaluate, parts.meta.theta_at(), lambda *_: None, own=True)
        parts.feedback.next()
        ends.append(parts.feedback.heads.state_dict())
    assert_bit_equal(*ends)


IJEPA = {
    "learner": {
        "objective": "ijepa",
        "ijepa": {"predictor_width": 16, "predictor_heads": 2, "predictor_layers": 1, "warm_up_steps": 2},
    },
    "stream": {"local_views": 0, "global_views": 1, "colour": False},
}
DIT = {"designer": {"kind": "dit", "patch_size": 8, "layers": 1}}


TILTED = {"value": {"strength": 1.0}}


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("v", TILTED), ("v", IJEPA | TILTED), ("fixed", {}), ("v-paper", {}),
        ("v-paper", IJEPA), ("v-paper", DIT),
    ],
)  # fmt: skip
def test_an_interrupted_run_ends_bit_equal(tmp_path, arm, changes):
    changes = changes | {"stream": changes.get("stream", {}) | {"accumulation": 2}}
    recipe = vision_recipe(tmp_path, arm=arm, optimizer={"schedule": "cosine"}, **changes)

    session, result = stopped_after(recipe, [])
    end = held(session.save())
    again, result_again = stopped_after(recipe, [0, 3])
    assert_same_end(end, held(again.save()))
    assert "centre" in end[0]["teacher"]
    assert end[0].keys() >= {"teacher", "heads", "heads-optimizer"}
    assert result["test_images"] == result_again["test_images"]


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "ijepa"])
def test_a_run_gives_every_figure_a_sheet_and_a_model_that_transformers_loads(tmp_path, family):
    recipe = vision_recipe(tmp_path, family)
    session = session_of(recipe)
    result = session.run()
    for key in ("miou", "depth_rmse", "depth_abs_rel", "depth_delta_1", "accuracy", "retrieval_map", "images_per_s"):
        assert result[key] is not None
    assert (result["images"], result["meta_updates"]) == (24, 3)
    assert 0 < result["mean_mask"] < 1
    assert (recipe.directory / "views.png").stat().st_size > 1000
    reloaded = AutoModel.from_pretrained(recipe.directory / "model", dtype=torch.float32).eval()
    pixels = torch.rand(2, 3, 32, 32)
    ours = session.parts.learner.backbone.model.eval()
    assert torch.equal(reloaded(pixel_values=pixels).last_hidden_state, ours(pixel_values=pixels).last_hidden_state)


def test_the_mean_mask_counts_burn_in_as_views_that_nothing_hides(tmp_path):
    recipe = vision_recipe(tmp_path)
    half = recipe.model_copy(update={"designer": recipe.designer.model_copy(update={"burn_in_steps": 2})})
    session = session_of(half)
    result = session.run()
    logged = [line["mask"] for line in read_lines(half.directory / "metrics.jsonl")]
    assert logged[:2] == [1.0, 1.0]
    assert max(logged[2:]) < 1
    assert result["mean_mask"] == pytest.approx(sum(logged) / len(logged))


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "ijepa"])
def test_a_loss_reaches_everything_that_is_trained(tmp_path, family):
    parts = assemble(vision_recipe(tmp_path, family))  # what it does not reach, DDP waits for
    (batch,) = parts.stream.next()
    state = parts.learner.forward(batch)
    parts.learner.loss(state, parts.construction.targets(batch, state.detach()).detach()).backward()
    assert [name for name, p in parts.learner.named_parameters() if p.grad is None] == []


def test_s_is_of_the_backbone_however_long_the_predictor_is(tmp_path):
    recipe = vision_recipe(tmp_path, "ijepa")
    ijepa = recipe.learner.ijepa.model_copy(update={"predictor_layers": 5})
    recipe = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"ijepa": ijepa})})
    parts = assemble(recipe)
    assert all(name.startswith("backbone.") for name in parts.meta.subset)


@pytest.mark.parametrize("arm", ["v", "v-paper"])
def test_the_dry_run_that_plans_the_steps_changes_nothing(tmp_path, arm):
    session = session_of(vision_recipe(tmp_path, arm=arm, budget={"steps": None, "minutes": 60}))
    parts = session.parts
    modules = {"learner": parts.learner.module, **parts.modules}
    modules |= {} if parts.designer is None else {"designer": parts.designer}
    before = {f"{m}.{n}": v.clone() for m, module in modules.items() for n, v in module.state_dict().items()}
    cursors, random = (parts.stream.state_dict(), parts.feedback.state_dict()), torch.get_rng_state()
    assert planned_steps(session.recipe, parts, session.optimizer) >= 1
    assert_bit_equal(before, {f"{m}.{n}": v for m, module in modules.items() for n, v in module.state_dict().items()})
    assert (parts.stream.state_dict(), parts.feedback.state_dict()) == cursors
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("patch_loss", [0.0, 1.0])
def test_the_teacher_follows_the_student_and_the_centres_its_outputs(tmp_path, patch_loss):
    dino = {"outputs": 32, "hidden": 32, "bottleneck": 16, "warm_up_steps": 1, "patch_loss": patch_loss}
    parts = assemble(vision_recipe(tmp_path, arm="fixed", learner={"dino": dino}))
    learner = parts.learner
    batch = parts.stream.next()[0]
    task = parts.construction.targets(batch, learner.forward(batch).detach()).detach()
    with torch.no_grad():
        for p in learner.module.parameters():
            p.add_(1.0)
    before = [p.clone() for p in learner.teacher.parameters()]
    learner.after_step([task], progress=0.0)
    momentum = learner.ema
    for mine, old, student in zip(learner.teacher.parameters(), before, learner.module.parameters(), strict=True):
        torch.testing.assert_close(mine, momentum * old + (1 - momentum) * student)
    outputs = task.target.outputs
    torch.testing.assert_close(learner.teacher.centre, 0.1 * outputs[:, :, 0].mean((0, 1)))
    if patch_loss:
        torch.testing.assert_close(learner.teacher.patch_centre, 0.1 * outputs[:, :, 1:].mean((0, 1, 2)))
    still = [p.clone() for p in learner.teacher.parameters()]
    learner.after_step([task], progress=1.0)
    assert all(torch.equal(a, b) for a, b in zip(still, learner.teacher.parameters(), strict=True))


@pytest.mark.parametrize("changes", [{}, IJEPA], ids=["dino", "ijepa"])
def test_the_warm_up_trains_the_head_and_leaves_a_teacher_that_is_the_student(tmp_path, changes):
    parts = assemble(vision_recipe(tmp_path, arm="fixed", **changes))
    student, teacher = (dict(m.named_parameters()) for m in (parts.learner.module, parts.learner.teacher))
    before = {name: p.detach().clone() for name, p in student.items()}
    parts.warm_up()
    assert_bit_equal(student, teacher)
    changed = [name for name, p in student.items() if not torch.equal(p, before[name])]
    assert changed
    assert all(name.startswith("head.") for name in changed)


def test_the_loss_is_the_mean_over_pairs_of_different_views(tmp_path):
    parts = assemble(vision_recipe(tmp_path, arm="fixed"))
    batch = parts.stream.next()[0]
    state = parts.learner.forward(batch)
    task = parts.construction.targets(batch, state.detach())
    config = parts.learner.config
    q = ((state.teacher[:, :, 0] - parts.learner.teacher.centre) / config.teacher_temperature).softmax(-1)
    students = [*state.student[:, :, 0], *state.local]
    terms = [
        torch.nn.functional.cross_entropy(student / config.student_temperature, q[t])
        for t in range(2)
        for s, student in enumerate(students)
        if s != t
    ]
    assert len(terms) == 2 * 3
    torch.testing.assert_close(parts.learner.loss(state, task), torch.stack(terms).mean())


def test_a_random_mask_has_the_keep_ratio_and_follows_from_the_draw(tmp_path):
    parts = assemble(vision_recipe(tmp_path, arm="random-mask", designer={"keep": 0.9}))
    batch = parts.stream.next()[0]
    mask = parts.construction.mask(batch)
    torch.testing.assert_close(mask.mean((2, 3, 4)), torch.full(mask.shape[:2], 0.9), atol=0.01, rtol=0)
    assert torch.equal(mask, parts.construction.mask(batch))
    assert not torch.equal(mask, parts.construction.mask(replace(batch, seed=7)))


def test_a_random_mask_keeps_as_much_as_the_designers_mask_has_kept(tmp_path):
    recipe = vision_recipe(tmp_path, designer={"start": 0.8})
    result = run_recipe(recipe)
    lines = read_lines(recipe.directory / "metrics.jsonl")
    assert result.mean_mask == pytest.approx(sum(line["mask"] for line in lines) / len(lines), rel=1e-4)
    assert 0.6 < result.mean_mask < 0.95
    leader, settings_from = ARMS["random-mask"].follows
    assert leader == recipe.arm
    data = with_overrides(recipe.model_dump(mode="json"), ["arm=random-mask", *settings_from(result.figures)])
    parts = assemble(parse_recipe(data))
    mask = parts.construction.mask(parts.stream.next()[0])
    assert float(mask.mean()) == pytest.approx(result.mean_mask, abs=0.01)


def test_a_new_designer_is_near_a_no_op_and_its_regulariser_is_what_it_says(tmp_path):
    parts = assemble(vision_recipe(tmp_path))
    assert isinstance(parts.construction, LearnedViews)
    batch = parts.stream.next()[0]
    inputs = parts.construction.inputs(batch)
    assert float((inputs.global_VB3HW - batch.global_VB3HW).abs().mean().detach()) < 0.01
    task = parts.construction.targets(inputs, parts.learner.forward(batch).detach())
    assert float(parts.construction.regulariser(task).detach()) == pytest.approx(0.131 * (0.98 - 0.6) ** 2, rel=1e-3)


def test_the_regulariser_adds_how_much_a_mask_varies_across_and_down():
    views = LearnedViews(torch.nn.Identity(), DesignerConfig(keep=0.5, sparsity=2.0, smoothness=0.3))
    mask = torch.tensor([[0.0, 1.0], [0.5, 1.0]]).expand(2, 3, 1, 2, 2)
    across, down = (1.0 + 0.5) / 2, (0.5 + 0.0) / 2
    expected = 2.0 * (0.625 - 0.5) ** 2 + 0.3 * (across + down)
    assert float(views.regulariser(Task(None, None, {"mask_VB1HW": mask}))) == pytest.approx(expected, rel=1e-5)


def test_check_takes_one_step_and_wrong_input_gets_one_line(tmp_path):
    lines = list(check(vision_recipe(tmp_path)))
    assert "a meta update and a learner step on a tiny copy of the learner: fine" in lines
    assert "memory: about" in lines[-1]
    note = "note: value.batch_size=6 is above stream.batch_size=4: a meta update takes 4 images"
    assert note in list(check(vision_recipe(tmp_path, value={"batch_size": 6})))
    assert not any("is above stream.batch_size" in line for line in lines)
    for changes, message in (
        (
            {"stream": {"sources": [{"scenes": 24, "seed": 1, "size": 40, "limit": 4}]}},
            "skip and limit are for labelled, ade20k and nyuv2",
        ),
        (
            {"stream": {"global_size": 30}},
            "stream.global_size=30 is no multiple of the learner's patch of 8 pixels: use 32",
        ),
        ({"stream": {"global_views": 1}}, "DINO matches different global views: set stream.global_views=2"),
        (IJEPA | {"stream": {"local_views": 2}}, "I-JEPA has no local crops"),
        (
            {"designer": {"kind": "dit", "patch_size": 12}},
            "designer.patch_size=12 does not divide stream.global_size=32",
        ),
        (
            {"stream": {"sources": [{"scenes": 24, "seed": 1, "size": 24}]}},
            "of 24 x 24 pixels is smaller than a crop: remove it, or lower stream.global_size=32",
        ),
        ({"stream": {"batch_size": 64}}, "the stream has 24 images: fewer than stream.batch_size=64"),
        ({"stream": {"sources": [{"path": str(tmp_path / "none")}]}}, "no images in"),
        ({"feedback": {"heads": [{"path": str(tmp_path)}]}}, "has no labels"),
        ({"learner": {"name": "./nowhere"}}, "there is no learner at ./nowhere"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            list(check(vision_recipe(tmp_path, **changes)))
        assert "\n" not in str(caught.value)


def test_the_memory_of_activations_is_that_of_the_views_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("vpretrain.vision.inspection.check.memory_line", lambda parts, learner: parts["activations"])
    one, two, three = (
        estimate_memory(vision_recipe(tmp_path, stream={"global_views": count, "local_views": 0}))
        for count in (1, 2, 3)
    )
    assert (two, three) == (2 * one, 3 * one)


def test_pictures_may_come_from_a_folder(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (50 + i, 40), (10 * i, 100, 200)).save(folder / f"{i}.png")
    recipe = vision_recipe(tmp_path, arm="fixed", stream={"sources": [{"path": str(tmp_path / "pictures")}]})
    batch = assemble(recipe).stream.next()[0]
    assert batch.global_VB3HW.shape == (2, 4, 3, 32, 32)
    (folder / "5.png").write_bytes(b"no picture")
    strict = recipe.model_copy(update={"stream": recipe.stream.model_copy(update={"on_error": "stop"})})
    stream = assemble(strict).stream
    with pytest.raises(UserError, match=r"cannot read the image .*5\.png"):
        [stream.next() for _ in range(3)]


def test_pictures_may_come_from_tar_shards(tmp_path):
    import tarfile

    from PIL import Image

    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for i in range(3):
                file = tmp_path / f"{shard}-{i}.png"
                Image.new("RGB", (40, 40), (100 * shard, 60 * i, 7)).save(file)
                tar.add(file, arcname=f"{i}.png")
                (tmp_path / "note.txt").write_text("no picture")
                tar.add(tmp_path / "note.txt", arcname=f"{i}.txt")
    shards = open_images(SourceConfig(path=str(tmp_path / "shard-*.tar")))
    assert len(shards) == 6
    assert shards[4][:, 5, 5].tolist() == [100, 60, 7]
    assert shards.key(4).endswith("shard-1.tar:1.png")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"cannot read the shard .*bad\.tar"):
        open_images(SourceConfig(path=str(tmp_path / "bad.tar")))
    with pytest.raises(UserError, match=r"no images in .*none\.tar"):
        open_images(SourceConfig(path=str(tmp_path / "none.tar")))


def test_a_hub_data_set_that_cannot_be_had_gets_one_line():
    with pytest.raises(
        UserError, match=r"cannot load no/such-pictures: .*; HF_HUB_OFFLINE is set: give a path"
    ) as caught:
        open_images(SourceConfig(hub="no/such-pictures", split="train"))
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_vision_recipes(tmp_path, capsys):
    from vpretrain.cli.parser import main

    save_recipe(vision_recipe(tmp_path), tmp_path / "recipe.yaml")
    path = str(tmp_path / "recipe.yaml")
    assert main(["inspect", path]) == 0
    assert "value of the task" in capsys.readouterr().out
    assert (tmp_path / "runs/tiny/inspect.png").exists()
    processor = "preprocessor_config.json"
    (tmp_path / "vision-dinov2" / processor).write_text('{"image_processor_type": "BitImageProcessor"}')
    assert main(["run", path, "budget.steps=2"]) == 0
    assert main(["export", str(tmp_path / "runs/tiny"), str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / processor).read_text() == '{"image_processor_type": "BitImageProcessor"}'
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "exported"), path, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["miou"] == pytest.approx(json.loads((tmp_path / "runs/tiny/result.json").read_text())["miou"])
    assert main(["doctor", "--learner", str(tmp_path / "exported"), "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert engines["jvp"]["relative_error"] <= 1e-5
    assert engines["finite_difference"]["relative_error"] <= 1e-2


def test_a_batch_without_a_valid_depth_is_described_all_the_same():
    from vpretrain.vision.inspection.inspect import _range

    depth_BHW = torch.zeros(1, 2, 2)
    assert _range(depth_BHW) == "no pixel of this batch is valid"
    depth_BHW[0, 0] = torch.tensor([1.0, 2.5])
    assert _range(depth_BHW) == "50.0% valid, 1.00 to 2.50 m"


def test_doctor_examines_a_vision_recipe_with_its_own_heads(tmp_path, capsys):
    from vpretrain.cli.parser import main

    save_recipe(vision_recipe(tmp_path), tmp_path / "recipe.yaml")
    assert main(["doctor", str(tmp_path / "recipe.yaml"), "value.engine=finite_difference", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["engines"]["jvp"]["relative_error"] <= 1e-5
    assert diagnosis["relative_step"] == 1e-5
    assert diagnosis["finite_difference_sweep"]["1e-05"] <= 1e-2  # the default step


def test_one_gradient_serves_both_tasks(tmp_path):
    from vpretrain.method.value import gradient

    parts = assemble(vision_recipe(tmp_path, feedback={"segmentation": 2.0, "depth": 3.0}))
    with parts.learner.meta_mode():
        (batch,) = parts.feedback.next().values()

        def g_down(**weights):
            some = replace(batch, heads={task: batch.heads[task] for task in weights}, weights=weights)
            return gradient(lambda parameters: parts.learner.evaluate(some, parameters), parts.meta.theta_at())

        both = gradient(lambda parameters: parts.learner.evaluate(batch, parameters), parts.meta.theta_at())
        segmentation, depth = g_down(segmentation=1.0), g_down(depth=1.0)
    for name in both:
        torch.testing.assert_close(both[name], 2 * segmentation[name] + 3 * depth[name], rtol=1e-3, atol=1e-6)


def test_python_runs_vision_recipes(tmp_path):
    assert run_recipe(vision_recipe(tmp_path, budget={"steps": 1})).steps == 1
