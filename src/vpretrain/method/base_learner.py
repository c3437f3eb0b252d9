"""The base class of all learners: theta, however the processes hold it, and the contexts of a meta step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.method.last_mlp import LastMLP, MLPEntry
from vpretrain.method.parameters import Theta
from vpretrain.method.protocols import AnyBatch, AnyState, Context, Inputs, Parameters, Task
from vpretrain.timing import phase

Output = TypeVar("Output")  # of a pass


class BaseLearner:
    """A learner without `forward`, `loss` and `evaluate`, which each modality adds; see `protocols.Learner`.

    It holds theta and nothing that could change theta by gradient: the optimizer is kept elsewhere (the firewall).

    Args:
        module: the module that holds theta.
        theta: holds it for one or several processes, see `vpretrain.method.parameters`; None: for one.
        bf16: whether the learner's own passes run under bf16 autocast.
    """

    module: nn.Module
    last_mlp: LastMLP | None = None
    """Where a tangent through the last MLP can be taken, if that has been found."""

    def __init__(self, module: nn.Module, theta: Theta | None = None, *, bf16: bool = False) -> None:
        self.module, self.bf16 = module, bf16
        self.theta = Theta(module) if theta is None else theta

    @property
    def device(self) -> torch.device:
        """The device that batches must be on."""
        return next(self.module.parameters()).device

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        return self.theta.trainable.items()

    def forward(self, inputs: Inputs, parameters: Parameters | None = None) -> AnyState:
        """Return the state for constructed inputs; `parameters` replace those of S, and then no other gets a gradient."""
        raise NotImplementedError

    def loss(self, state: AnyState, task: Task) -> Tensor:
        """L_pre: the self-supervised loss of a task, averaged over its targets."""
        raise NotImplementedError

    def evaluate(self, batch: AnyBatch, parameters: Parameters) -> Tensor:
        """L_down: the evaluator's loss on a feedback batch, as a function of S."""
        raise NotImplementedError

    def prepare(self, inputs: Inputs, parameters: Parameters) -> Inputs:
        """Return the inputs unchanged: nothing is precomputed for several evaluations."""
        return inputs

    def prepare_in_own_precision(self, inputs: Inputs, parameters: Parameters) -> Inputs:
        """Return what `prepare` returns: where that computes nothing itself, the passes over it have the learner's
        precision."""
        return self.prepare(inputs, parameters)

    def directional_derivative(
        self, inputs: Inputs, parameters: Parameters, direction: Parameters, *, whole: bool
    ) -> Callable[[Task], Tensor]:
        """Return D_u L_pre as a function of the task, with one tangent pass per task.

        It does not use forward_ad.dual_level: there softmax and logsumexp write their tangents in place, and the gradient of
        a designer of inputs, which goes backward through them, fails (torch 2.13).
        """

        def derivative(task: Task) -> Tensor:
            def loss(parameters: Parameters) -> Tensor:
                return self.loss(self.forward(inputs, parameters), task)

            with self.without_fused_kernels():
                found: Tensor = torch.func.jvp(loss, (parameters,), (direction,))[1]
            return found

        return derivative

    def varying(self, inputs: Inputs) -> Inputs:
        """Return the inputs themselves: the task affects the loss in all their parts."""
        return inputs

    def keep_entries(self, subset: Iterable[str]) -> bool:
        """Keep the entry into the last MLP with states from now on; return False, and keep none, if S is not that MLP."""
        fits = self.last_mlp is not None and self.last_mlp.names >= set(subset)
        if self.last_mlp is not None:
            self.last_mlp.watch(fits)
        return fits

    @contextlib.contextmanager
    def recording(self, at_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
        """Record the entry of one pass at some tokens, for `take_entry`."""
        with contextlib.nullcontext() if self.last_mlp is None else self.last_mlp.recording(at_BT):
            yield

    def take_entry(self) -> MLPEntry | None:
        """Return the entry of the last recorded pass, once; None unless `keep_entries` has turned that on."""
        return None if self.last_mlp is None else self.last_mlp.take_entry()

    def tangent_from_entry(self, entry: MLPEntry | None, direction: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return the last hidden states at an entry's tokens, and D_u of them; None if S is not the last MLP, or without entry.

        See `LastMLP.linearised`.
        """
        if entry is None or self.last_mlp is None or not direction.keys() <= self.last_mlp.names:
            return None
        with phase("tangent"):
            return self.last_mlp.linearised(entry, dict(self.module.named_parameters()), direction)

    def hidden_from_entry(self, entry: MLPEntry | None, parameters: Parameters) -> Tensor | None:
        """Return the last hidden states at an entry's tokens, as a function of S; None as for `tangent_from_entry`, and where
        theta is sharded."""
        if entry is None or self.last_mlp is None or not parameters.keys() <= self.last_mlp.names:
            return None
        return self.last_mlp.hidden(entry, self.theta.values_with({}), parameters) if self.has_own_gradient else None

    def tangent_pass(self, run: Callable[[Parameters], Output], direction: Parameters) -> tuple[Output, Output]:
        """Return what `run` gives at the present parameters of S, and D_u of that: one pass in forward mode."""
        theta_S = {name: p.detach() for name, p in self.named_parameters() if name in direction}
        along = {name: direction[name] for name in theta_S}  # in the order of theta_S; in a resumed run it may differ
        with phase("tangent"), self.meta_mode(), self.without_fused_kernels():
            found = torch.func.jvp(run, (theta_S,), (along,))
        return found[0], found[1]

    def gradient(self, loss: Callable[[Parameters], Tensor], theta_S: Parameters) -> Parameters:
        """Return the mean over processes of a loss's gradient in the parameters of S; no other parameter gets one."""
        return self.theta.gradient(loss, theta_S)

    def visit_gradient(
        self,
        loss: Callable[[Parameters], Tensor],
        theta_S: Parameters,
        visit: Callable[[str, Tensor], None],
        *,
        own: bool,
    ) -> None:
        """Pass that gradient to `visit` parameter by parameter; with `own`, this process's alone where `has_own_gradient`."""
        self.theta.visit_gradient(loss, theta_S, visit, own=own)

    @property
    def has_own_gradient(self) -> bool:
        """Whether a process can take its own gradient; not where theta is sharded."""
        return self.theta.has_own_gradient

    def shifted(
        self, theta_S: Parameters, by: Parameters, step: float
    ) -> contextlib.AbstractContextManager[Parameters]:
        """Return a context that gives the parameters of S at theta_S + step * u, to evaluate at inside it."""
        return self.theta.shifted(theta_S, by, step)

    def synchronise(self, when: bool) -> None:
        """Set whether the next backward passes are the step's last; only those average gradients over processes."""
        self.theta.synchronise(when)

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """Do nothing: nothing follows theta by rule."""

    def looking_ahead(self, batch: AnyBatch) -> Context:
        """Return an empty context: a meta update and the step after it share no computation."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def meta_mode(self) -> Iterator[None]:
        """Run a meta step without a trace: no dropout, no random numbers."""
        modes = [(part, part.training) for part in self.module.modules()]  # a loop may keep some parts in evaluation
        self.module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training

    def autocast(self) -> Context:
        """Return the context of the learner's own precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def without_fused_kernels(self) -> Iterator[None]:
        """Use unfused attention: the fused kernels have neither forward-mode nor second derivatives (pytorch #128971,
        #116350)."""
        with sdpa_kernel(SDPBackend.MATH):
            yield
