"""V-pretraining as a part of another loop, in every modality: the losses of a step, and what is kept between runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import AnyBatch, Construction, Feedback, Learner
from vpretrain.method.step import MicroStep, Schedule, learner_losses
from vpretrain.run.checkpoint import checkpoints, load_newest, save_checkpoint
from vpretrain.run.optimizer import Preconditioner, load_optimizer_tensors, optimizer_tensors
from vpretrain.run.state import captured_meta, designer_optimizer, fitting, restore_meta
from vpretrain.types import Json


class Attached:
    """The base of adapters for loops of one's own: lines 2 to 4 of Algorithm 1, with the loop's optimizer.

    Args:
        learner, feedback, construction, meta: as in `continue_pretraining`.
        base: makes the base task, used during burn-in.
        schedule: when the task is constructed, and when phi is updated.
        aware: whether value and strength are measured in the metric of the loop's optimizer, if it is an Adam.
        modules, optimizers: what is saved besides, by name.

    Attributes:
        record: figures of the last step: means over its examples, and those of `MetaUpdate` if it made a meta update.
    """

    def __init__(
        self,
        learner: Learner,
        feedback: Feedback,
        construction: Construction,
        meta: MetaUpdate,
        *,
        base: Construction,
        schedule: Schedule,
        aware: bool,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    ) -> None:
        self.feedback, self.construction, self.meta, self.base = feedback, construction, meta, base
        self.schedule, self._aware, self._learner = schedule, aware, learner
        self._modules, self._optimizers = dict(modules), {**(optimizers or {}), **designer_optimizer(meta)}
        self.record: Json = {}

    def micro_steps(
        self,
        step: int,
        batches: Sequence[AnyBatch],
        *,
        optimizer: torch.optim.Optimizer | None,
        total: float | None,
        progress: float,
    ) -> Iterator[MicroStep]:
        """Yield the micro-steps of a step; if a meta update is due, it comes before the first."""
        self.record = {}
        if self.schedule.updates(step):
            metric = partial(self._metric, optimizer) if optimizer is not None and self._aware else None
            with self._own_precision():
                self.record |= self.meta(batches, metric, progress)
        construction = self.construction if self.schedule.constructs(step) else self.base
        everything = sum(batch.weight for batch in batches)
        means: Json = {}
        parts = learner_losses(self._learner, construction, batches, total=total)
        for batch in batches:
            with self._own_precision():
                part = next(parts)
            if batch.weight:
                for name, value in part.task.summary().items():
                    means[name] = means.get(name, 0.0) + batch.weight / everything * value
                self.record |= means
            yield part

    def save(self, directory: str | Path) -> None:
        """Save direction, designer with its optimizer, and cursors, but not the model: the loop saves it. Raises UserError."""
        groups, state = captured_meta(self.meta)
        groups |= {name: module.state_dict() for name, module in self._modules.items()}
        groups |= {f"{name}-optimizer": optimizer_tensors(own) for name, own in self._optimizers.items()}
        state["feedback"] = self.feedback.state_dict()
        with distributed.without_collectives():  # all processes hold the same, and only one may be saving
            before = checkpoints(Path(directory))  # of this training, or of another that wrote there
            number = 1 + int(before[-1].name.removeprefix("step-")) if before else 0
            save_checkpoint(Path(directory), number, groups, state, keep=1)

    def load(self, directory: str | Path) -> None:
        """Continue from the files of `save`, bit for bit. Raises UserError."""
        if not distributed.broadcast(checkpoints(Path(directory))):
            raise UserError(f"{directory} holds no designer: it is not of a run with V-pretraining, or has lost it")
        groups, state = load_newest(Path(directory))
        with fitting():
            for name, module in self._modules.items():
                module.load_state_dict(groups[name])
            for name, own in self._optimizers.items():
                load_optimizer_tensors(own, groups[f"{name}-optimizer"])
            restore_meta(self.meta, groups, state)
            self.feedback.load_state_dict(state["feedback"])

    def _own_precision(self) -> torch.autocast:
        """Return a context outside the loop's autocast, under which a value would lose its differences."""
        return torch.autocast(self._learner.device.type, enabled=False)

    def _metric(self, optimizer: torch.optim.Optimizer, names: Iterable[str]) -> Mapping[str, Tensor] | None:
        chosen = set(names)
        return Preconditioner(optimizer, {n: p for n, p in self._learner.named_parameters() if n in chosen}) or None
