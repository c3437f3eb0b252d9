"""VisionPretraining: our loop's numbers in a loop of one's own, and its state between runs."""

from __future__ import annotations

import copy
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from worlds import vision_recipe

from vpretrain import UserError, VisionPretraining, distributed, view_batch
from vpretrain.config import OptimizerConfig
from vpretrain.method.algorithm import continue_pretraining
from vpretrain.method.step import Schedule
from vpretrain.run.optimizer import AdamW
from vpretrain.vision.assemble import assemble
from vpretrain.vision.model.load import load_backbone

EXAMPLE = Path(__file__).parents[2] / "examples/vision_loop.py"
STEPS, LR = 5, 1e-3
PATCHES = {"dino": {"outputs": 32, "hidden": 32, "bottleneck": 16, "warm_up_steps": 0, "patch_loss": 1.0}}


def recipe_of(root, family="dinov3", **changes):
    value = {"every_steps": 2, "batch_size": 4, "strength": 1.0}
    return vision_recipe(root, family, arm="v", value=value, stream={"accumulation": 2}, **changes)


def attached(recipe):
    return VisionPretraining(
        load_backbone(recipe.learner.name), recipe.feedback, dino=recipe.learner.dino, value=recipe.value
    )


def steps_of(v, optimizer, steps, numbers):
    """Losses and figures of these steps of a loop of one's own."""
    found = []
    torch.manual_seed(0)  # DINOv3 rescales its positions at random, DINOv2 drops paths
    for step in numbers:
        batches = [view_batch(batch.global_VB3HW, batch.local_VB3HW, seed=batch.seed) for batch in steps[step]]
        losses = []
        for loss in v.losses(step, batches, optimizer=optimizer, progress=step / STEPS):
            loss.backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(v.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        v.after_step((step + 1) / STEPS)
        found.append((float(sum(losses)), float(norm), {name: float(number) for name, number in v.record.items()}))
    return found


def adamw(v):
    return torch.optim.AdamW(v.parameters(), lr=LR, weight_decay=0.0, fused=True)


@pytest.mark.parametrize(("family", "learner"), [("dinov3", {}), ("dinov2", PATCHES)])
def test_the_numbers_are_our_loops_bit_for_bit(tmp_path, family, learner):
    recipe = recipe_of(tmp_path, family, learner=learner)
    parts = assemble(recipe)
    steps = [parts.stream.next() for _ in range(STEPS)]

    class Replay:
        left = iter(steps)

        def next(self):
            return next(self.left)

    records = []
    torch.manual_seed(0)
    continue_pretraining(
        learner=parts.learner,
        stream=Replay(),
        construction=parts.construction,
        base=parts.base,
        optimizer=AdamW(parts.learner.named_parameters(), OptimizerConfig(lr=LR, warmup_fraction=0), total_steps=STEPS),
        meta=parts.meta,
        schedule=Schedule(recipe.value.every_steps),
        optimizer_aware=True,
        steps=range(STEPS),
        after_step=records.append,
    )
    v = attached(recipe)
    found = steps_of(v, adamw(v), steps, range(STEPS))
    assert [loss for loss, _, _ in found] == [record.loss for record in records]
    assert [norm for _, norm, _ in found] == [record.optimizer["grad_norm"] for record in records]
    assert [figures for _, _, figures in found] == [record.side | record.meta for record in records]
    assert sum("g_down_norm" in figures for _, _, figures in found) == 2  # not before AdamW's first step
    for ours, theirs in ((parts.learner.module, v.learner.module), (parts.learner.teacher, v.learner.teacher)):
        for (name, tensor), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name


def test_what_was_saved_goes_on_bit_for_bit(tmp_path):
    recipe = recipe_of(tmp_path)
    stream = assemble(recipe).stream
    steps = [stream.next() for _ in range(STEPS)]
    v = attached(recipe)
    optimizer = adamw(v)
    steps_of(v, optimizer, steps, range(3))
    v.save(tmp_path / "v")
    other = attached(recipe)
    other.learner.module.load_state_dict(v.learner.module.state_dict())
    again = adamw(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load(tmp_path / "v")
    assert steps_of(v, optimizer, steps, range(3, STEPS)) == steps_of(other, again, steps, range(3, STEPS))


def test_the_autocast_of_the_loop_changes_nothing(tmp_path):
    recipe = recipe_of(tmp_path)
    stream = assemble(recipe).stream
    steps = [stream.next() for _ in range(3)]
    found = []
    for cast in (False, True):
        v = attached(recipe)
        optimizer = adamw(v)
        steps_of(v, optimizer, steps, range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            losses = [loss.detach() for loss in v.losses(2, steps[2], optimizer=optimizer)]
        found.append((losses, v.record))
    assert "g_down_norm" in found[0][1]
    assert found[0] == found[1]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(UserError, match="in one process"):
        attached(recipe)


def test_the_example_runs_and_says_what_v_pretraining_does(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 10
    assert all(math.isfinite(float(re.search(r"loss (\S+)", line)[1])) for line in lines)
    tilts = [float(re.search(r"tilt (\S+)", line)[1]) for line in lines]
    assert tilts[0] == 0  # AdamW has no metric yet
    assert min(tilts[1:]) > 0
