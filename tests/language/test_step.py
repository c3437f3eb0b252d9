"""Lines 3 and 4 of Algorithm 1 on micro-batches without targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import random_batch, tiny_model

from vpretrain.config import OptimizerConfig
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot, Smoothing
from vpretrain.method.algorithm import continue_pretraining
from vpretrain.method.step import Schedule, learner_losses
from vpretrain.run.optimizer import AdamW


def without_targets(seed=5):
    batch = random_batch(2, seed=seed)
    return replace(batch, weights_BT=torch.zeros_like(batch.weights_BT))


def gradient(batches, construction):
    learner = LanguageLearner(tiny_model(), top_k=4)
    losses = []
    for part in learner_losses(learner, construction, batches):
        part.loss.backward()
        losses.append(part.loss.item())
    return losses, {name: p.grad for name, p in learner.named_parameters()}


@pytest.mark.parametrize("construction", [OneHot(), Smoothing(0.25, "self")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_micro_batch_without_targets_changes_no_loss_and_no_gradient(construction, place):
    batches = [random_batch(2, seed=1), random_batch(2, seed=2)]
    losses, wanted = gradient(batches, construction)
    batches.insert(place, without_targets())
    found_losses, found = gradient(batches, construction)
    assert found_losses.pop(place) == 0
    assert found_losses == losses
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class Stream:
    def next(self):
        return [without_targets(), without_targets(6)]


def test_a_step_of_nothing_else_is_made_and_changes_nothing():
    learner = LanguageLearner(tiny_model())
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    records = []
    continue_pretraining(
        learner=learner,
        stream=Stream(),
        construction=OneHot(),
        base=OneHot(),
        optimizer=AdamW(learner.named_parameters(), OptimizerConfig(lr=1e-2), total_steps=2),
        meta=None,
        schedule=Schedule(1),
        optimizer_aware=False,
        steps=range(2),
        after_step=records.append,
    )
    assert [(record.loss, record.side["alpha"]) for record in records] == [(0, 0), (0, 0)]
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
