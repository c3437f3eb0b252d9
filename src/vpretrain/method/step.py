"""Lines 3 and 4 of Algorithm 1: the tasks of a learner step and their losses; and the schedule of line 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.method.protocols import AnyBatch, Construction, Learner, Task
from vpretrain.timing import phase


@dataclass(frozen=True)
class Schedule:
    """The schedule of burn-in and meta updates.

    Attributes:
        every_steps: r, the learner steps from one meta update to the next.
        burn_in_steps: learner steps on the base task before the first meta update.

    Examples:
        >>> schedule = Schedule(every_steps=4)
        >>> [step for step in range(12) if schedule.updates(step)]
        [0, 4, 8]
    """

    every_steps: int
    burn_in_steps: int = 0

    def constructs(self, step: int) -> bool:
        """Whether the construction makes the task of this learner step."""
        return step >= self.burn_in_steps

    def updates(self, step: int) -> bool:
        """Whether a meta update comes before this learner step."""
        return self.constructs(step) and (step - self.burn_in_steps) % self.every_steps == 0


@dataclass(frozen=True)
class MicroStep:
    """One micro-batch of a learner step.

    Attributes:
        loss: L_pre of the task, times `weight`; call backward on it before requesting the next micro-step.
        task: the task, detached.
        weight: the micro-batch's weight in the step's loss.
    """

    loss: Tensor
    task: Task
    weight: float


def learner_losses(
    learner: Learner, construction: Construction, batches: Sequence[AnyBatch], *, total: float | None = None
) -> Iterator[MicroStep]:
    """Yield the micro-steps of a learner step, one per micro-batch.

    A micro-batch without targets gives a loss of 0, but goes through the learner all the same: all processes must make equally
    many passes.

    Args:
        learner: theta.
        construction: c_phi, or a control in its place.
        batches: this process's micro-batches.
        total: the weight that normalises the losses; None: that of these micro-batches, averaged over processes.

    Examples:
        >>> from vpretrain.language.assemble import assemble
        >>> parts = assemble(load_recipe("recipe.yaml"))
        >>> for part in learner_losses(parts.learner, parts.construction, parts.stream.next()):
        ...     part.loss.backward()
    """
    weights = [batch.weight for batch in batches]
    whole = distributed.all_reduce_mean(sum(weights)) if total is None else total
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        learner.synchronise(number == len(batches) - 1)
        with phase("construction"), torch.no_grad():
            inputs = construction.inputs(batch if weight else batch.with_targets())
        with phase("learner forward"):
            state = learner.forward(inputs)
        with phase("construction"), torch.no_grad():
            task = construction.targets(inputs, state.detach()).detach()  # line 3: the task with the new phi, detached
        # The weight as drawn: if the construction leaves examples out, the others stand for their micro-batch.
        of_step = weight / whole if whole else 0.0
        with phase("learner backward"):
            loss = learner.loss(state, task) * of_step
        yield MicroStep(loss, task, of_step)
