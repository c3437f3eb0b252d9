"""Algorithm 1 (V-pretraining). Every arm of every modality runs through this loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Construction, Learner, Stream
from vpretrain.timing import phase


class LearnerOptimizer(Protocol):
    """The learner's optimizer: the only thing that changes theta, from gradients of L_pre alone."""

    def step(self, loss: float) -> dict[str, float]:
        """Clip, update, clear the gradients; raises NonFinite before anything is updated with a number that is none."""
        ...

    @property
    def progress(self) -> float:
        """How far the run has come, as a share of its horizon."""
        ...

    def metric(self, names: Iterable[str]) -> Mapping[str, Tensor] | None:
        """AdamW's preconditioner P over these parameters; None while it has no statistics."""
        ...


@dataclass
class StepRecord:
    """What one learner step did."""

    step: int
    loss: float
    tokens: int
    optimizer: dict[str, float]
    side: dict[str, float] = field(default_factory=dict)
    meta: dict[str, float] = field(default_factory=dict)


def continue_pretraining(
    *,
    learner: Learner,
    stream: Stream,
    construction: Construction,
    base: Construction,
    optimizer: LearnerOptimizer,
    meta: MetaUpdate | None,
    every_steps: int,
    burn_in_steps: int,
    optimizer_aware: bool,
    steps: Iterable[int],
    after_step: Callable[[StepRecord], Any],
) -> None:
    """Continue the learner's pretraining on constructed tasks.

    Args:
        learner: theta.
        stream: D_u.
        construction: c_phi, or a control in its place.
        base: the base recipe, used during burn-in.
        optimizer: updates theta.
        meta: updates phi from feedback; None for a control that has no use for feedback.
        every_steps: r.
        burn_in_steps: learner steps on the base recipe before the first meta update.
        optimizer_aware: whether value and strength are measured in the metric of the learner's optimizer.
        steps: step numbers, until the budget is spent.
        after_step: called after each step: logging, checkpoints.
    """
    for step in steps:
        burnt_in = step >= burn_in_steps
        current = construction if burnt_in else base
        record = StepRecord(step, 0.0, 0, {})

        with phase("stream"):
            batches = stream.next()  # line 1: an unlabeled batch B_u (of which each process has its part)

        learner.synchronise(len(batches) == 1)
        if meta is not None and burnt_in and (step - burn_in_steps) % every_steps == 0:  # line 2: update phi
            record.meta = meta(batches, optimizer.metric if optimizer_aware else None, optimizer.progress)

        weights = [batch.weight for batch in batches]
        whole = distributed.mean(sum(weights))
        tasks, losses, sides = [], [], []
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            # As drawn: where the construction leaves examples out, those that stay stand for their micro-batch.
            share = weight / whole
            if share == 0:
                continue
            learner.synchronise(number == len(batches) - 1)
            with phase("construction"), torch.no_grad():
                inputs = current.inputs(batch)
            with phase("learner forward"):
                state = learner.forward(inputs)
            with phase("construction"), torch.no_grad():
                task = current.targets(inputs, state.detach()).detach()  # line 3: the task with the new phi, detached
            with phase("learner backward"):
                loss = learner.loss(state, task) * share
                loss.backward()  # line 4: one step of theta on L_pre
            record.tokens += batch.tokens
            tasks.append(task)
            losses.append(loss.detach())
            sides.append({name: share * value for name, value in task.summary().items()})
        with phase("learner optimizer"):
            # Numbers only now: to read one earlier is to wait for the device.
            own = {"loss": float(sum(losses)), "tokens": record.tokens}
            own |= {name: float(sum(side[name] for side in sides)) for name in sides[0]}
            record.side = distributed.means(own)
            record.loss, record.tokens = record.side.pop("loss"), round(record.side.pop("tokens") * distributed.size())
            record.optimizer = optimizer.step(record.loss)
            learner.after_step(tasks, optimizer.progress)
        after_step(record)
