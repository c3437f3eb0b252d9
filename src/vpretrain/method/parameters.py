"""How processes hold theta: all of it in one process, all of it in each of several (DDP), or sharded (FSDP2).

A learner uses these classes for passes that end in a gradient of theta; the rest of a learner is the same in all three cases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from vpretrain import distributed
from vpretrain.method.protocols import Parameters
from vpretrain.method.subset import blocks_of
from vpretrain.method.value import gradient, visit_gradient


class Theta:
    """One process holds all of theta.

    Args:
        module: the module that holds theta.
    """

    has_own_gradient = True  # whether a process can take a gradient that is not the mean over processes
    looks_ahead = True  # whether the learner's forward pass can come before a meta update, and its backward after it

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def forward(self, *arguments: object) -> Any:
        """Run the learner's own pass; its gradients are averaged over processes."""
        return self.module(*arguments)

    def synchronise(self, when: bool) -> None:
        """Set, before a micro-batch's passes, whether they are the step's last; only those average gradients over processes."""

    def forward_with(self, parameters: Parameters, *arguments: object) -> Any:
        """Run a pass at other values of S; no other parameter gets a gradient."""
        return functional_call(self.module, self.values_with(parameters), arguments)

    def forward_frozen(self, *arguments: object) -> Any:
        """Run a pass that gives theta no gradient, but passes one on to its arguments."""
        return self.forward_with({}, *arguments)

    def values_with(self, parameters: Parameters) -> Any:
        """Return all of theta with other values of S; None if the module itself has them."""
        return {name: p.detach() for name, p in self.module.named_parameters()} | parameters

    def detached_copy(self, parameter: Tensor) -> Tensor:
        """Return a parameter, as used in a pass at other values of S, in a form that stays valid after FSDP reshards it."""
        return parameter

    def gradient(self, loss: Callable[[Parameters], Tensor], theta_S: Parameters) -> Parameters:
        """Return the mean over processes of a loss's gradient in the parameters of S."""
        found = gradient(loss, theta_S)
        return dict(zip(found, distributed.all_reduce_mean(list(found.values())), strict=True))

    def visit_gradient(
        self,
        loss: Callable[[Parameters], Tensor],
        theta_S: Parameters,
        visit: Callable[[str, Tensor], None],
        *,
        own: bool,
    ) -> None:
        """Pass that gradient to `visit` parameter by parameter; with `own`, this process's alone if it can take one."""
        if distributed.size() == 1 or (own and self.has_own_gradient):
            visit_gradient(loss, theta_S, visit)
        else:
            for name, g in self.gradient(loss, theta_S).items():
                visit(name, g)

    @contextlib.contextmanager
    def shifted(self, theta_S: Parameters, by: Parameters, step: float) -> Iterator[Parameters]:
        """Yield the parameters of S at theta_S + step * u, to evaluate at inside the context."""
        yield {name: value.detach() + step * by[name] for name, value in theta_S.items()}

    def reshard(self) -> None:
        """Free the parameters that passes without a gradient have gathered."""


class ReplicatedTheta(Theta):
    """Every process holds all of theta; DistributedDataParallel wraps the learner's own passes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._ddp = DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def forward(self, *arguments: object) -> Any:
        return self._ddp(*arguments) if torch.is_grad_enabled() else self.module(*arguments)

    def synchronise(self, when: bool) -> None:
        self._ddp.require_backward_grad_sync = when


class ShardedTheta(Theta):
    """Every process holds a part of every parameter: FSDP2, block by block.

    Tangents of sharded parameters are not defined, and sharded parameters cannot be replaced for one pass. So the values of S
    are shifted in place and restored from a copy, and g_down is taken from `.grad`, which is empty between steps, and removed
    before any other code can see it.
    """

    has_own_gradient = False
    looks_ahead = False

    def __init__(self, module: nn.Module) -> None:
        self._root = sharded(module)
        super().__init__(module)
        if hasattr(module, "generate"):
            register_fsdp_forward_method(module, "generate")

    def synchronise(self, when: bool) -> None:
        self.reshard()  # what was gathered before an update or a checkpoint changed the shards is stale
        self._root.set_requires_gradient_sync(when)

    def forward_with(self, parameters: Parameters, *arguments: object) -> Any:
        return self.module(*arguments)

    def forward_frozen(self, *arguments: object) -> Any:
        with self._trained():
            return self.module(*arguments)

    def values_with(self, parameters: Parameters) -> None:
        return None

    def detached_copy(self, parameter: Tensor) -> Tensor:
        return parameter.detach().clone()  # what was gathered for a pass is freed

    def gradient(self, loss: Callable[[Parameters], Tensor], theta_S: Parameters) -> Parameters:
        assert all(p.grad is None for p in self.trainable.values()), (
            "a meta update comes before the step's own gradients"
        )
        self.synchronise(True)
        try:
            with self._trained(*theta_S), torch.enable_grad():
                loss(theta_S).backward()
            found = {name: self.trainable[name].grad for name in theta_S}
            return {name: torch.zeros_like(theta_S[name]) if g is None else g for name, g in found.items()}
        finally:
            for p in self.trainable.values():
                p.grad = None

    @contextlib.contextmanager
    def shifted(self, theta_S: Parameters, by: Parameters, step: float) -> Iterator[Parameters]:
        kept = {name: value.detach().clone() for name, value in theta_S.items()}
        try:
            self._write({name: value + step * by[name] for name, value in kept.items()})
            with self._trained():
                yield theta_S
        finally:
            self._write(kept)

    def reshard(self) -> None:
        self._root.reshard()

    @contextlib.contextmanager
    def _trained(self, *names: str) -> Iterator[None]:
        """Let only these parameters require a gradient, inside the context."""
        others = [p for name, p in self.trainable.items() if name not in names]
        self.reshard()  # parameters gathered again take `requires_grad` from their shards
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)
            self.reshard()

    def _write(self, values: Parameters) -> None:
        self.reshard()
        with torch.no_grad():
            for name, value in values.items():
                self.trainable[name].copy_(value)


def sharded(module: nn.Module) -> FSDPModule:
    """Return the same module with all its parameters sharded over the processes."""
    mesh = init_device_mesh(next(module.parameters()).device.type, (distributed.size(),))
    for block in blocks_of(module)[1]:
        fully_shard(block, mesh=mesh)
    # The root stays gathered from its forward to its backward pass: a loss outside it needs the head's weight.
    return fully_shard(module, mesh=mesh, reshard_after_forward=False)


def theta_of(module: nn.Module, parallel: Literal["ddp", "fsdp"] | None) -> Theta:
    """Return theta for the processes; None: the caller's trainer synchronises them. Call when theta is on its device."""
    if distributed.size() == 1 or parallel is None:
        return Theta(module)
    return ReplicatedTheta(module) if parallel == "ddp" else ShardedTheta(module)
