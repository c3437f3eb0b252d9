"""The protocols that all modalities implement: batches, tasks, and the five parts of Algorithm 1.

Nothing here depends on language or vision, and `algorithm.py` and `value.py` depend on no more than this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from vpretrain.types import Json

Parameters = dict[str, Tensor]
"""Named tensors over the alignment subset S: values of parameters, a gradient, or a direction."""


AnyBatch: TypeAlias = Any
"""A modality's own `Batch`."""
Inputs: TypeAlias = Any
"""A modality's own constructed inputs."""
AnyState: TypeAlias = Any
"""A modality's own `State`."""
Context = AbstractContextManager[object]

_Same = TypeVar("_Same", bound=Any)


def with_tensors(batch: _Same, change: Callable[[Tensor], Tensor]) -> _Same:
    """Return a batch (a dataclass) with all its tensors changed."""
    changed = {name: change(value) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **changed)


class Batch(Protocol):
    """A micro-batch of unlabeled stream examples or of feedback pairs."""

    @property
    def weight(self) -> float:
        """Total weight of its targets: the number of valid tokens (or of examples), which normalises the loss."""
        ...

    @property
    def units(self) -> int:
        """How much the learner reads, in the unit of the modality's throughput: tokens or images."""
        ...

    def restrict(self, *, domain: str | None, more: Sequence[Batch], **sizes: int) -> Batch | None:
        """Return rows (of one domain) as a meta batch; None if there are none.

        Where its own do not suffice, the modality may take those of `more`, the further micro-batches of the step.
        """
        ...

    def with_targets(self) -> Batch:
        """Return a batch for the same passes that counts next to nothing in a mean over the targets of all processes."""
        ...

    def apart(self) -> Sequence[Batch]:
        """Return its examples, each as a batch of its own; a judgement averages over them."""
        ...


class State(Protocol):
    """The part of a learner's results for a batch that the loss and the construction need."""

    def detach(self) -> State:
        """Return the same without graph or tangent, the only form that a construction gets (sg in the paper)."""
        ...


@dataclass(frozen=True)
class Task:
    """A constructed prediction problem (x_c, y, m): input, target and side information (section 2.1)."""

    inputs: Inputs
    target: Any
    side: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Task:
        """Return the same task without a graph to the designer, the only form that the learner is trained on."""
        return Task(self.inputs, self.target.detach(), {name: value.detach() for name, value in self.side.items()})

    def summary(self) -> dict[str, Tensor]:
        """Return means of the scalar side information (such as the gate alpha) for the log, by name without shape suffix."""
        return {name.rpartition("_")[0]: value.mean() for name, value in self.side.items() if value.ndim == 1}


Targets = Callable[[Inputs, AnyState], Task]
"""A rule for the task, given its inputs and the learner's detached state for them."""


class Stream(Protocol):
    """The unlabeled stream D_u."""

    device: torch.device | str
    """The device of its batches."""

    def next(self) -> list[AnyBatch]:
        """Return the micro-batches of one learner step, with the rows of this process."""
        ...

    def state_dict(self) -> Json:
        """Return the JSON-ready cursor of this process."""
        ...

    def merge(self, states: Sequence[Json]) -> Json:
        """Return the whole stream's cursor from those of all processes."""
        ...

    def load_state_dict(self, state: Json) -> None:
        """Continue at a cursor: this process's or, with any number of processes, the whole stream's."""
        ...


class Feedback(Protocol):
    """The small labelled feedback set D_fb, by domain."""

    def next(self) -> dict[str, AnyBatch]:
        """Return one labelled batch per domain; none for a domain of which a verifier has nothing to tell at present."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each domain."""
        ...

    def state_dict(self) -> Json: ...

    def load_state_dict(self, state: Json) -> None: ...


class Learner(Protocol):
    """The foundation model theta, as a pure function of its inputs and, on request, of replaced parameters."""

    @property
    def module(self) -> nn.Module:
        """The module that holds theta."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that batches must be on."""
        ...

    def forward(self, inputs: Inputs, parameters: Parameters | None = None) -> AnyState:
        """Return the state for constructed inputs; `parameters` replace those of S, and then no other gets a gradient."""
        ...

    def prepare(self, inputs: Inputs, parameters: Parameters) -> Inputs:
        """Return inputs with all that does not depend on the parameters of S precomputed, for several evaluations."""
        ...

    def prepare_in_own_precision(self, inputs: Inputs, parameters: Parameters) -> Inputs:
        """Return the same for passes in the learner's own precision; values and their tangents are fp32."""
        ...

    def varying(self, inputs: Inputs) -> Inputs:
        """Return the inputs without parts whose loss is the same for every phi."""
        ...

    def directional_derivative(
        self, inputs: Inputs, parameters: Parameters, direction: Parameters, *, whole: bool
    ) -> Callable[[Task], Tensor]:
        """Return D_u L_pre at the parameters of S along u, as a function of the task; differentiable in phi.

        Unless `whole`, a part that is the same for all tasks may be left out.
        """
        ...

    def loss(self, state: AnyState, task: Task) -> Tensor:
        """L_pre: the self-supervised loss of a task, averaged over its targets. It contains no feedback."""
        ...

    def evaluate(self, batch: AnyBatch, parameters: Parameters) -> Tensor:
        """L_down: the evaluator's loss on a feedback batch (Eq 38), as a function of the parameters of S."""
        ...

    def gradient(self, loss: Callable[[Parameters], Tensor], theta_S: Parameters) -> Parameters:
        """Return the mean over processes of a loss's gradient in the parameters of S; no other parameter gets one."""
        ...

    def visit_gradient(
        self,
        loss: Callable[[Parameters], Tensor],
        theta_S: Parameters,
        visit: Callable[[str, Tensor], None],
        *,
        own: bool,
    ) -> None:
        """Pass that gradient to `visit` parameter by parameter; with `own`, this process's alone where `has_own_gradient`."""
        ...

    @property
    def has_own_gradient(self) -> bool:
        """Whether a process can take its own gradient; not where theta is sharded."""
        ...

    def shifted(self, theta_S: Parameters, by: Parameters, step: float) -> AbstractContextManager[Parameters | None]:
        """Return a context that gives the parameters of S at theta_S + step * u, to evaluate at inside it."""
        ...

    def synchronise(self, when: bool) -> None:
        """Set whether the next backward passes are the step's last; only those average gradients over processes."""
        ...

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """Update what follows theta by rule and not by gradient, such as an EMA teacher; `progress` runs from 0 to 1."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        ...

    def meta_mode(self) -> Context:
        """Return the context of a meta step: no dropout, no trace."""
        ...

    def autocast(self) -> Context:
        """Return the context of the learner's own precision, for passes that are differentiated once, backwards."""
        ...

    def looking_ahead(self, batch: AnyBatch) -> Context:
        """Return the context of a meta update just before the step that begins with this batch; both may share computations."""
        ...

    def without_fused_kernels(self) -> Context:
        """Return a context in which all operations can be differentiated twice, or in forward mode; slower."""
        ...


class Construction(Protocol):
    """c_phi: makes the task. A control is a construction without parameters."""

    def inputs(self, batch: AnyBatch) -> Inputs:
        """Return the learner's inputs (vision: views; language: the batch itself)."""
        ...

    def targets(self, inputs: Inputs, state: AnyState) -> Task:
        """Return the task, given its inputs and the learner's detached state for them; differentiable in phi."""
        ...

    def regulariser(self, task: Task) -> Tensor:
        """R(phi) of Eq 26, weighted: keeps the task near the base task."""
        ...

    def unit(self, surrogate: Tensor, task: Task) -> Tensor | float:
        """Return the unit that divides the value before R is subtracted; `surrogate` has the value's gradient."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """phi; empty for a control."""
        ...


class TiltedConstruction(Construction, Protocol):
    """A construction that mixes the base task with a tilted one, see `vpretrain.method.strength`."""

    def ends(self) -> tuple[Targets, Targets]:
        """Return the targets of the base task and of the tilted one, as functions of inputs and state."""
        ...
