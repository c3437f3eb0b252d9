"""FSDP2 on one device: a group of one process holds all shards, and takes the course of a plain learner."""

from __future__ import annotations

import pytest
import torch
from distributed.processes import distance
from torch.distributed.tensor import DTensor

from benchmarks.gpu.worker import one_process
from vpretrain.method.parameters import ShardedTheta
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import begin, train

pytestmark = pytest.mark.cuda


def steps(recipe, *, sharded):
    """The losses of six steps, and the learner's parameters after them."""
    parts, losses = begin(recipe), []
    if sharded:
        parts.learner.theta = ShardedTheta(parts.learner.module)
    optimizer = AdamW(parts.learner.named_parameters(), recipe.optimizer, total_steps=6)
    train(recipe, parts, optimizer, steps=range(6), after_step=lambda record: losses.append(record.loss))
    ends = [p.detach() for _, p in parts.learner.named_parameters()]
    assert all(isinstance(p, DTensor) for p in ends) == sharded
    return losses, torch.cat([(p.full_tensor() if sharded else p).flatten() for p in ends])


@pytest.mark.parametrize("arm", ["one-hot", "v"])
def test_shards_of_one_process_take_the_course_of_a_plain_learner(on_device, arm):
    recipe = on_device(arm=arm, value={"strength": 1.0})
    losses, end = steps(recipe, sharded=False)
    with one_process():
        losses_too, end_too = steps(recipe, sharded=True)
    assert losses_too == pytest.approx(losses, rel=1e-4)
    assert distance(end, end_too) < 1e-3
