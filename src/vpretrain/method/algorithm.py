"""Algorithm 1 (V-pretraining): the loop of every arm of every modality, but for those that TRL trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from vpretrain import distributed
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Construction, Learner, Stream
from vpretrain.method.step import Schedule, learner_losses
from vpretrain.timing import phase


class LearnerOptimizer(Protocol):
    """The learner's optimizer: the only thing that changes theta, from gradients of L_pre alone."""

    def step(self, loss: float) -> dict[str, float]:
        """Clip, update and clear the gradients; raises NonFinite before any update if a number is NaN or infinite."""
        ...

    @property
    def progress(self) -> float:
        """The fraction of the run's total steps that is done."""
        ...

    def metric(self, names: Iterable[str]) -> Mapping[str, Tensor] | None:
        """AdamW's preconditioner P over these parameters; None until it has statistics."""
        ...


@dataclass
class StepRecord:
    """The result of one learner step; `units` is how much all processes have read, in tokens or images."""

    step: int
    loss: float
    units: int
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
    schedule: Schedule,
    optimizer_aware: bool,
    steps: Iterable[int],
    after_step: Callable[[StepRecord], object],
) -> None:
    """Continue the learner's pretraining on constructed tasks.

    Args:
        learner: theta.
        stream: D_u.
        construction: c_phi, or a control in its place.
        base: makes the base task, used during burn-in.
        optimizer: updates theta.
        meta: updates phi from feedback; None for a control that has no use for feedback.
        schedule: when the task is constructed, and when phi is updated.
        optimizer_aware: whether value and strength are measured in the metric of the learner's optimizer.
        steps: step numbers, until the budget is spent.
        after_step: called after each step, for logging and checkpoints.

    Examples:
        The parts of a recipe, in a loop without checkpoints and log:

        >>> from vpretrain.language.assemble import assemble
        >>> from vpretrain.run.optimizer import AdamW
        >>> recipe = load_recipe("recipe.yaml")
        >>> parts, records = assemble(recipe), []
        >>> continue_pretraining(
        ...     learner=parts.learner,
        ...     stream=parts.stream,
        ...     construction=parts.construction,
        ...     base=parts.base,
        ...     optimizer=AdamW(parts.learner.named_parameters(), recipe.optimizer, total_steps=4),
        ...     meta=parts.meta,
        ...     schedule=Schedule(every_steps=2),
        ...     optimizer_aware=False,
        ...     steps=range(4),
        ...     after_step=records.append,
        ... )
        >>> [record.step for record in records]
        [0, 1, 2, 3]
    """
    for step in steps:
        current = construction if schedule.constructs(step) else base
        record = StepRecord(step, 0.0, 0, {})

        with phase("stream"):
            batches = stream.next()  # line 1: an unlabeled batch B_u (this process's part of it)

        learner.synchronise(len(batches) == 1)  # now: the meta update may make the first micro-batch's forward pass
        if meta is not None and schedule.updates(step):  # line 2: update phi
            record.meta = meta(batches, optimizer.metric if optimizer_aware else None, optimizer.progress)

        tasks, losses, sides = [], [], []
        for part in learner_losses(learner, current, batches):  # line 3: the tasks with the new phi, detached
            with phase("learner backward"):
                part.loss.backward()  # line 4: one step of theta on L_pre
            tasks.append(part.task)
            losses.append(part.loss.detach())
            sides.append({name: part.weight * value for name, value in part.task.summary().items()})
        with phase("learner optimizer"):
            # Convert to numbers only now: reading one earlier would wait for the device.
            own = {"loss": float(sum(losses)), "units": sum(batch.units for batch in batches)}
            own |= {name: float(sum(side[name] for side in sides)) for name in sides[0]}
            record.side = distributed.all_reduce_mean(own)
            record.loss, record.units = record.side.pop("loss"), round(record.side.pop("units") * distributed.size())
            record.optimizer = optimizer.step(record.loss)
            learner.after_step(tasks, optimizer.progress)
        after_step(record)
