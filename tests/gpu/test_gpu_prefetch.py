"""Batches that are read ahead reach the device through pinned memory, and are the same."""

from __future__ import annotations

import pytest
import torch
from distributed.processes import distance

from vpretrain import run_recipe
from vpretrain.language.model.batch import TokenBatch
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.run.train import begin

pytestmark = pytest.mark.cuda
TENSORS = ("ids_BT", "positions_BT", "weights_BT")


def test_batches_read_ahead_arrive_through_pinned_memory(on_device, device, monkeypatch):
    """The worker is forked from a process that has used the device."""
    pinned, pin = [], TokenBatch.pin_memory

    def pinning(batch):
        made = pin(batch)
        pinned.append(all(getattr(made, name).is_pinned() for name in TENSORS))
        return made

    monkeypatch.setattr(TokenBatch, "pin_memory", pinning)
    ahead, plain = (begin(on_device(arm="one-hot", stream={"prefetch": steps})).stream for steps in (2, 0))
    for _ in range(5):
        for one, other in zip(ahead.next(), plain.next(), strict=True):
            assert one.keys == other.keys
            for name in TENSORS:
                assert getattr(one, name).device.type == device.type
                assert torch.equal(getattr(one, name), getattr(other, name))
    assert pinned == ([True] * 5 if device.type == "cuda" else [])


def test_a_run_that_reads_ahead_ends_as_one_that_does_not(on_device, tmp_path):
    ends = []
    for name, steps in (("plain", 0), ("ahead", 2)):
        run_recipe(on_device(name=name, arm="v", stream={"prefetch": steps}, value={"strength": 1.0}))
        ends.append(load_checkpoint(checkpoints(tmp_path / "runs" / name / "checkpoints")[-1]))
    (plain, state), (ahead, state_too) = ends
    assert state["stream"] == state_too["stream"]
    whole, whole_too = (torch.cat([t.flatten() for t in groups["learner"].values()]) for groups in (plain, ahead))
    assert distance(whole, whole_too) < 1e-3  # sums on a GPU have no fixed order
