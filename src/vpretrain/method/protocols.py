"""What the rooms of a modality agree on: batches, tasks, and the five parts that Algorithm 1 is made of.

Nothing here knows about language or vision, and `algorithm.py` and `value.py` know nothing beyond this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

Parameters = dict[str, Tensor]
"""Named tensors over the alignment subset S: values of parameters, a gradient, or a direction."""


AnyBatch = TypeVar("AnyBatch", bound=Any)


def with_tensors(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    """A batch (a dataclass) with all its tensors changed."""
    changed = {name: change(value) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **changed)


class Batch(Protocol):
    """A micro-batch of unlabeled stream examples or of feedback pairs."""

    @property
    def weight(self) -> float:
        """Total weight of its targets: the number of valid tokens (or of examples), which normalises the loss."""
        ...

    def restrict(self, *, domain: str | None, **sizes: int) -> Batch | None:
        """A part of it (of one domain): a meta batch. None if there is none."""
        ...

    def with_targets(self) -> Batch:
        """What stands in for it, without counting, where its weight is 0."""
        ...

    def apart(self) -> Sequence[Batch]:
        """Its examples, each as a batch of its own: what a judgement averages over."""
        ...


class State(Protocol):
    """What a learner computed for a batch, as far as the loss and the construction need it."""

    def detach(self) -> State:
        """The same without graph or tangent: all that a construction ever sees (sg in the paper)."""
        ...


@dataclass(frozen=True)
class Task:
    """A constructed prediction problem (x_c, y, m): input, target and side information (section 2.1)."""

    inputs: Any
    target: Any
    side: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Task:
        """The same task without a graph to the designer: the only form that the learner is trained on."""
        return Task(self.inputs, self.target.detach(), {name: value.detach() for name, value in self.side.items()})

    def summary(self) -> dict[str, Tensor]:
        """Means of the scalar side information (such as the gate alpha), by its name without its shape, for the log."""
        return {name.rpartition("_")[0]: value.mean() for name, value in self.side.items() if value.ndim == 1}


class Stream(Protocol):
    """The unlabeled stream D_u."""

    def next(self) -> list[Any]:
        """The micro-batches of one learner step: the rows of this process."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON-ready, of what this process reads."""
        ...

    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The whole stream's cursor from those of all processes."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a cursor, this process's or, with any number of processes, the whole stream's."""
        ...


class Feedback(Protocol):
    """The small labelled feedback set D_fb, by domain."""

    def next(self) -> dict[str, Any]:
        """One labelled batch for every domain."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of every domain."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Learner(Protocol):
    """The foundation model theta, as a pure function of its inputs and, on request, of replaced parameters."""

    @property
    def module(self) -> nn.Module:
        """The module that holds theta."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        ...

    def forward(self, inputs: Any, parameters: Parameters | None = None) -> Any:
        """The state for constructed inputs; `parameters` replaces those of S, and then no other gets a gradient."""
        ...

    def prepare(self, inputs: Any, parameters: Parameters) -> Any:
        """Inputs that hold what does not depend on the parameters of S, for an engine that evaluates at several of them."""
        ...

    def directional_derivative(
        self, inputs: Any, parameters: Parameters, direction: Parameters, *, whole: bool
    ) -> Callable[[Task], Tensor]:
        """D_u L_pre at the parameters of S along u, as a function of the task; differentiable in phi.

        Unless `whole`, a part that is the same for all tasks may be left out.
        """
        ...

    def loss(self, state: Any, task: Task) -> Tensor:
        """L_pre: the self-supervised loss of a task, averaged over its targets. It carries no feedback."""
        ...

    def evaluate(self, batch: Any, parameters: Parameters) -> Tensor:
        """L_down: the evaluator's loss on a feedback batch (Eq 38), as a function of the parameters of S."""
        ...

    def gradient(self, loss: Callable[[Parameters], Tensor], at: Parameters) -> Parameters:
        """The mean over processes of a loss's gradient by the parameters of S; no other parameter gets one."""
        ...

    def visit_gradient(
        self, loss: Callable[[Parameters], Tensor], at: Parameters, visit: Callable[[str, Tensor], None], *, own: bool
    ) -> None:
        """The same, or that of this process alone where `has_own_gradient`; `visit` gets it parameter by parameter."""
        ...

    @property
    def has_own_gradient(self) -> bool:
        """Whether a process can take a gradient of its own: not where theta lies in shards."""
        ...

    def shifted(self, at: Parameters, by: Parameters, step: float) -> Any:
        """Context that gives the parameters of S at theta_S + step * u, to evaluate at within."""
        ...

    def synchronise(self, when: bool) -> None:
        """Whether the coming backward passes are the step's last: then the processes' gradients meet."""
        ...

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """What follows theta by rule and not by gradient, such as an EMA teacher; `progress` runs from 0 to 1."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        ...

    def meta_mode(self) -> Any:
        """Context of a meta step: no dropout, no trace."""
        ...

    def autocast(self) -> Any:
        """Context of the learner's own precision, for passes that are differentiated once, backwards."""
        ...

    def looking_ahead(self, batch: Any) -> Any:
        """Context of a meta update just before the step that begins with this batch: what both compute may be computed once."""
        ...

    def without_fused_kernels(self) -> Any:
        """Context in which all operations can be differentiated twice, or forwards; slower."""
        ...


class Construction(Protocol):
    """c_phi: makes the task. A control is a construction without parameters."""

    def inputs(self, batch: Any) -> Any:
        """The learner's inputs (vision: views; language: the batch itself)."""
        ...

    def targets(self, inputs: Any, state: Any) -> Task:
        """The task, given its inputs and the learner's detached state for them; differentiable in phi."""
        ...

    def regulariser(self, task: Task) -> Tensor:
        """R(phi) of Eq 26, weighted: keeps the task near the base recipe."""
        ...

    def unit(self, surrogate: Tensor, task: Task) -> Tensor | float:
        """What the value is divided by before the regulariser is weighed against it; `surrogate` has the value's gradient."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """phi; empty for a control."""
        ...


class TiltedConstruction(Construction, Protocol):
    """A construction that mixes the base task with a tilted one, see `vpretrain.method.strength`."""

    def ends(self) -> tuple[Callable[[Any, Any], Task], Callable[[Any, Any], Task]]:
        """The targets of the base task and those of the tilted one, of inputs and state."""
        ...
