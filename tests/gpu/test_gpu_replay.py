"""A step that failed is made again, and a run that was stopped goes on, on the device that it ran on."""

from __future__ import annotations

import math

import pytest
import torch
from distributed.processes import distance
from sessions import end_of, session_of, stopped_after

from vpretrain import UserError
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.run.replay import replay

pytestmark = pytest.mark.cuda


def test_a_step_that_failed_fails_again_on_the_device_and_does_not_once_the_fault_is_gone(on_device, monkeypatch):
    recipe = on_device(arm="v", stream={"accumulation": 2}, value={"strength": 1.0})
    session = session_of(recipe)
    loss = LanguageLearner.loss

    def failing(self, state, task):
        return loss(self, state, task) * (math.inf if session.budget.step == 3 else 1.0)

    monkeypatch.setattr(LanguageLearner, "loss", failing)
    with pytest.raises(UserError, match="the loss is inf at step 3; the learner was not updated"):
        session.run()
    kept = recipe.directory / "replay" / "step-00000003"
    found = replay(kept)
    assert found["batch"]
    assert found["is"] == found["was"] == "the loss is inf"
    monkeypatch.undo()
    found = replay(kept)
    assert found["batch"]
    assert (found["is"], found["not_finite"]) == (None, {})


def test_a_run_that_was_stopped_goes_on_with_the_random_numbers_of_its_device(on_device, device):
    """GPT-2 here has dropout."""
    recipes = [on_device("gpt2", name=name, arm="v", value={"strength": 1.0}) for name in ("whole", "stopped")]
    session_of(recipes[0]).run()
    stopped_after(recipes[1], [2])
    (whole, _), (stopped, _) = (end_of(recipe) for recipe in recipes)
    assert ("0/cuda" in whole["random"]) == torch.cuda.is_available()
    for name, state in whole["random"].items():
        assert torch.equal(stopped["random"][name], state), name
    one, other = (torch.cat([t.flatten() for t in groups["learner"].values()]) for groups in (whole, stopped))
    assert distance(one, other) <= (1e-3 if device.type == "cuda" else 0.0)
