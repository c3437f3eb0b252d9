"""All that the next step of a run depends on, as a checkpoint holds it."""

from __future__ import annotations

from typing import Any

from torch import nn

from vpretrain.errors import UserError
from vpretrain.parts import Parts
from vpretrain.run.checkpoint import Groups, load_parameters
from vpretrain.run.optimizer import AdamW, load_optimizer_tensors, optimizer_tensors
from vpretrain.run.random_state import random_state, set_random_state


def captured(parts: Parts, optimizer: AdamW) -> tuple[Groups, dict[str, Any]]:
    """Tensors by group, and what JSON holds."""
    groups: Groups = {
        "learner": {name: p.detach() for name, p in parts.learner.named_parameters()},
        "learner-optimizer": optimizer_tensors(optimizer.torch),
        "random": random_state(),
    }
    state: dict[str, Any] = {
        "optimizer": optimizer.state_dict(),
        "stream": parts.stream.state_dict(),
        "feedback": parts.feedback.state_dict(),
    }
    groups |= {name: module.state_dict() for name, module in _modules(parts).items()}
    groups |= {f"{name}-optimizer": optimizer_tensors(o) for name, o in parts.optimizers.items()}
    if parts.meta is not None:
        state["meta_updates"] = parts.meta.updates
        groups["direction"] = parts.meta.direction or {}
        groups["feedback-gradients"] = {
            f"{domain}/{name}": g for domain, kept in parts.meta.kept.items() for name, g in kept.items()
        }
        if parts.meta.optimizer is not None:
            groups["designer-optimizer"] = optimizer_tensors(parts.meta.optimizer)
    return groups, state


def restore(parts: Parts, optimizer: AdamW, groups: Groups, state: dict[str, Any]) -> None:
    """The reverse of `captured`.

    Raises:
        UserError: it is of a run with other parts.
    """
    load_parameters(parts.learner, groups["learner"])
    try:
        load_optimizer_tensors(optimizer.torch, groups["learner-optimizer"])
        optimizer.load_state_dict(state["optimizer"])
        for name, module in _modules(parts).items():
            module.load_state_dict(groups[name])
        for name, other in parts.optimizers.items():
            load_optimizer_tensors(other, groups[f"{name}-optimizer"])
        if parts.meta is not None:
            parts.meta.updates = state["meta_updates"]
            at = parts.meta.at()
            parts.meta.direction = {name: u.to(at[name]) for name, u in groups["direction"].items()} or None
            parts.meta.kept = {}
            for key, g in groups["feedback-gradients"].items():
                domain, name = key.rsplit("/", 1)
                parts.meta.kept.setdefault(domain, {})[name] = g.to(at[name])
            if parts.meta.optimizer is not None:
                load_optimizer_tensors(parts.meta.optimizer, groups["designer-optimizer"])
        parts.stream.load_state_dict(state["stream"])
        parts.feedback.load_state_dict(state["feedback"])
        set_random_state(groups["random"])
    except (KeyError, RuntimeError) as error:
        what = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the checkpoint is of a run with other parts than the recipe's ({what})") from error


class Before:
    """What a step of Algorithm 1 has changed by the time that it can fail: enough to make it again.

    theta and its optimizer change last, and phi after the last number that can be wrong in a meta update: so they need no copy.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.random = random_state()
        self.cursors = {"stream": parts.stream.state_dict(), "feedback": parts.feedback.state_dict()}
        fitted = [parts.modules[name] for name in parts.optimizers]  # with every feedback batch
        self.tensors = [{name: t.clone() for name, t in module.state_dict().items()} for module in fitted]
        self.optimizers = [
            {name: t.clone() for name, t in optimizer_tensors(o).items()} for o in parts.optimizers.values()
        ]
        self.updates = None if parts.meta is None else parts.meta.updates

    @property
    def updated(self) -> bool:
        """Whether phi has been updated since, so that what failed came after it."""
        return self.parts.meta is not None and self.parts.meta.updates != self.updates

    def captured(self, optimizer: AdamW) -> tuple[Groups, dict[str, Any]]:
        """The run's state as it was before the step, phi apart."""
        groups, state = captured(self.parts, optimizer)
        groups["random"] = self.random
        state |= self.cursors
        if not self.updated:
            for name, tensors, of_optimizer in zip(self.parts.optimizers, self.tensors, self.optimizers, strict=True):
                groups[name], groups[f"{name}-optimizer"] = tensors, of_optimizer
        return groups, state


def _modules(parts: Parts) -> dict[str, nn.Module]:
    return {**({} if parts.designer is None else {"designer": parts.designer}), **parts.modules}
