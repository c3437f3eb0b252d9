"""What the learners of all modalities share: theta, as its processes hold it, and the contexts of a meta step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.method.parameters import Theta
from vpretrain.method.protocols import Parameters, Task


class BaseLearner:
    """A learner without its `forward`, its `loss` and its `evaluate`, which a modality adds; see `protocols.Learner`.

    It holds theta and nothing that could change it by gradient: the optimizer lives elsewhere (the firewall).

    Args:
        module: the module with theta in it.
        theta: holds it for one process or several, see `vpretrain.method.parameters`; None: for one.
        bf16: the learner's own passes are under bf16 autocast.
    """

    module: Any

    def __init__(self, module: nn.Module, theta: Theta | None = None, *, bf16: bool = False) -> None:
        self.module, self.bf16 = module, bf16
        self.theta = Theta(module) if theta is None else theta

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return next(self.module.parameters()).device

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        return self.theta.trainable.items()

    def forward(self, inputs: Any, parameters: Parameters | None = None) -> Any:
        """The state for constructed inputs; `parameters` (of S) replace theirs, and then no other gets a gradient."""
        raise NotImplementedError

    def loss(self, state: Any, task: Task) -> Tensor:
        """L_pre: the self-supervised loss of a task, averaged over its targets."""
        raise NotImplementedError

    def evaluate(self, batch: Any, parameters: Parameters) -> Tensor:
        """L_down: the evaluator's loss on a feedback batch, as a function of S."""
        raise NotImplementedError

    def prepare(self, inputs: Any, parameters: Parameters) -> Any:
        """The inputs as they are: nothing is computed once for several evaluations."""
        return inputs

    def directional_derivative(
        self, inputs: Any, parameters: Parameters, direction: Parameters, *, whole: bool
    ) -> Callable[[Task], Tensor]:
        """D_u L_pre by a tangent pass for every task.

        Not forward_ad.dual_level: under it softmax and logsumexp have tangents in place, which a designer of inputs, whose
        gradient goes backward through them, cannot undo (torch 2.13).
        """

        def derivative(task: Task) -> Tensor:
            def loss(parameters: Parameters) -> Tensor:
                return self.loss(self.forward(inputs, parameters), task)

            with self.without_fused_kernels():
                return torch.func.jvp(loss, (parameters,), (direction,))[1]

        return derivative

    def gradient(self, loss: Callable[[Parameters], Tensor], at: Parameters) -> Parameters:
        """The mean over processes of a loss's gradient by the parameters of S; no other parameter gets one."""
        return self.theta.gradient(loss, at)

    def visit_gradient(
        self, loss: Callable[[Parameters], Tensor], at: Parameters, visit: Callable[[str, Tensor], None], *, own: bool
    ) -> None:
        """The same, or that of this process alone where `has_own_gradient`; `visit` gets it parameter by parameter."""
        self.theta.visit_gradient(loss, at, visit, own=own)

    @property
    def has_own_gradient(self) -> bool:
        """Whether a process can take a gradient of its own: not where theta lies in shards."""
        return self.theta.has_own_gradient

    def shifted(self, at: Parameters, by: Parameters, step: float) -> contextlib.AbstractContextManager[Parameters]:
        """The parameters of S at theta_S + step * u, to evaluate at within."""
        return self.theta.shifted(at, by, step)

    def synchronise(self, when: bool) -> None:
        """Whether the coming backward passes are the step's last: then the processes' gradients meet."""
        self.theta.synchronise(when)

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """Nothing follows theta by rule."""

    def looking_ahead(self, batch: Any) -> contextlib.AbstractContextManager[None]:
        """Nothing is shared between a meta update and the step after it."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def meta_mode(self) -> Iterator[None]:
        """A meta step leaves no trace: no dropout, no random numbers."""
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The learner's own precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def without_fused_kernels(self) -> Iterator[None]:
        """Attention in its plain form: the fused one has neither forward-mode nor second derivatives (pytorch #128971,
        #116350)."""
        with sdpa_kernel(SDPBackend.MATH):
            yield
