"""Where the host waits for the device: to read a number, or for a shape that depends on data. What a phase is charged with."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vpretrain import timing
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import begin, train
from vpretrain.timing import phase, watching

pytestmark = pytest.mark.cuda
MICRO_BATCHES = 3
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """A context that counts the operations for which the host waits, by the phase that they are in."""

    def __init__(self, watch: timing.Watch) -> None:
        super().__init__()
        self.watch, self.numbers, self.shapes = watch, Counter(), Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        where = self.watch._open[-1] if self.watch._open else "between"
        if function is aten._local_scalar_dense.default:
            self.numbers[where] += 1
        elif function in (aten.nonzero.default, aten.masked_select.default) or (
            function is aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in arguments[1])
        ):
            self.shapes[where] += 1
        return function(*arguments, **(keywords or {}))


def waits_of(recipe):
    """Of a step without a meta update, behind one that had one; and the numbers that transformers reads in a pass."""
    parts = begin(recipe)
    optimizer = AdamW(parts.learner.named_parameters(), recipe.optimizer, total_steps=9)
    train(recipe, parts, optimizer, steps=range(3), after_step=lambda record: None)
    with watching() as watch, Waits(watch) as waits:
        train(recipe, parts, optimizer, steps=[3], after_step=lambda record: None)
    (batch, *_) = parts.stream.next()
    with watching() as watch, Waits(watch) as theirs:
        parts.learner.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False)
    return waits, theirs.numbers.total()


@pytest.fixture
def waits(on_device):
    """Of one-hot and of V."""
    kwargs = {"stream": {"accumulation": MICRO_BATCHES}, "value": {"strength": 1.0}}
    return {arm: waits_of(on_device(arm=arm, **kwargs)) for arm in ("one-hot", "v")}


@pytest.mark.parametrize("arm", ["one-hot", "v"])
def test_between_the_first_pass_and_the_optimizer_no_number_is_read_but_by_transformers(waits, arm):
    """A loss that was read for the log would make the host wait for every micro-batch."""
    ours, theirs = waits[arm]
    numbers = dict(ours.numbers)
    assert numbers.pop("learner optimizer") > 0
    assert numbers.pop("between") == MICRO_BATCHES  # the weights, before the first pass
    assert numbers == ({"learner forward": MICRO_BATCHES * theirs} if theirs else {})


def test_the_tilt_adds_two_shapes_per_micro_batch(waits):
    """The numbers of the targets at which a pass is recorded, and the targets' weights."""
    more = waits["v"][0].shapes.total() - waits["one-hot"][0].shapes.total()
    assert more == 2 * MICRO_BATCHES


def test_a_phase_is_charged_with_the_work_that_it_queued(device):
    if device.type != "cuda":
        pytest.skip("a CPU queues nothing")
    torch.cuda._sleep(1000)  # compiled before it is timed
    with watching() as watch:
        with phase("queues"):
            start = time.perf_counter()
            torch.cuda._sleep(400_000_000)  # cycles: a fifth of a second
            queued = time.perf_counter() - start
        with phase("waits for nothing"):
            pass
    assert queued < 0.05
    assert watch.seconds["queues"] > 0.1
    assert watch.seconds["waits for nothing"] < 0.05
