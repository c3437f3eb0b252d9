"""The vision adapter on the device: what it adds to a model is where the model is."""

from __future__ import annotations

import pytest
import torch
from models import tiny_vision_model
from worlds import vision_recipe

from vpretrain import VisionPretraining, view_batch

pytestmark = pytest.mark.cuda


def test_a_step_of_a_loop_of_ones_own_runs_on_the_device(tmp_path, device):
    recipe = vision_recipe(tmp_path, "dinov3", arm="v", value={"every_steps": 1, "batch_size": 4, "strength": 1.0})
    model = tiny_vision_model("dinov3").to(device)
    v = VisionPretraining(model, recipe.feedback, dino=recipe.learner.dino, value=recipe.value)
    crops = view_batch(torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, 3, 16, 16), seed=0)
    (loss,) = v.losses(0, [crops])
    loss.backward()
    assert loss.device.type == device.type
    assert v.record["tilt"] > 0
    assert all(torch.isfinite(p.grad).all() for p in v.parameters() if p.grad is not None)
