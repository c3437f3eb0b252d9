"""Under bf16 a meta update takes what lies below S, and the feedback's gradient, from bf16 passes."""

from __future__ import annotations

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain.inspection.doctor import designer_gradient
from vpretrain.method.losses import stream_loss
from vpretrain.run.train import begin
from vpretrain.vision.assemble import assemble


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_the_designer_is_taught_the_same_in_bf16(tmp_path, tokenizer, modality):
    found = {}
    for precision in ("fp32", "bf16"):
        changes = {"name": precision, "learner": {"precision": precision}, "value": {"subset": "last-1"}}
        recipe = (
            tiny_recipe(tmp_path, tokenizer, arm="v-paper", **changes)
            if modality == "language"
            else vision_recipe(tmp_path, **changes)
        )
        parts = begin(recipe)
        torch.manual_seed(1)
        with torch.no_grad():  # away from a start at which much of the designer's gradient is zero
            for phi in parts.construction.parameters():
                phi.add_(0.05 * torch.randn_like(phi))
        batches = parts.stream.next()
        with parts.learner.meta_mode(), parts.learner.looking_ahead(batches[0]):
            g_down = parts.meta.feedback_gradients()
            (_, one), *_ = parts.meta.values(parts.meta.problems(g_down, batches))
        found[precision] = (
            float(one.value),
            parts.meta.norm_of(g_down),
            designer_gradient(one, parts.designer, {})["all"],
        )
    (value, g_down_norm, exact), (near_value, near_norm, near) = found["fp32"], found["bf16"]
    assert near_norm != g_down_norm
    assert near_norm == pytest.approx(g_down_norm, rel=0.02)
    assert near_value == pytest.approx(value, abs=0.02)
    assert torch.cosine_similarity(exact, near, dim=0) > 0.98


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_g_pre_of_vision_takes_teacher_and_lower_blocks_in_the_learners_precision(tmp_path, precision, dtype):
    parts, seen = assemble(vision_recipe(tmp_path, arm="v", learner={"precision": precision})), []
    learner = parts.learner
    for backbone in (learner.backbone, learner.teacher.backbone):
        for layer in filter(lambda part: isinstance(part, torch.nn.Linear), backbone.blocks[0].modules()):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    (batch,) = parts.stream.next()
    with learner.meta_mode():
        stream_loss(learner, parts.construction, batch, 1.0, parts.meta.theta_at(), parts.construction.targets)
    assert set(seen) == {dtype}
