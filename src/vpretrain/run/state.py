"""Capture and restore all that the next step of a run depends on, for checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.method.meta import MetaUpdate
from vpretrain.run.checkpoint import Tensors, load_parameters, load_tensors, placed
from vpretrain.run.optimizer import AdamW, load_optimizer_tensors, optimizer_tensors
from vpretrain.run.parts import Parts
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.types import Json


def captured(parts: Parts, optimizer: AdamW) -> tuple[Tensors, Json]:
    """Return tensors by group and the JSON-ready state, of all processes, which call this together."""
    groups: Tensors = {
        "learner": {name: p.detach() for name, p in parts.learner.named_parameters()},
        "random": {
            f"{rank}/{name}": t
            for rank, own in enumerate(distributed.all_gather(random_state()))
            for name, t in own.items()
        },
    }
    groups |= {name: module.state_dict() for name, module in _modules(parts).items()}
    groups |= {f"{name}-optimizer": optimizer_tensors(own) for name, own in _optimizers(parts, optimizer).items()}
    state: Json = {
        "optimizer": optimizer.state_dict(),
        "stream": parts.stream_cursor(),
        "feedback": parts.feedback.state_dict(),
    }
    if parts.meta is not None:
        of_meta, counters = captured_meta(parts.meta)
        groups, state = groups | of_meta, state | counters
    return groups, state


def restore(parts: Parts, optimizer: AdamW, groups: Tensors, state: Json) -> None:
    """Restore the result of `captured`. Raises UserError if it is of a run with other parts."""
    with fitting():
        load_parameters(parts.learner, groups["learner"])
        optimizer.load_state_dict(state["optimizer"])
        for name, module in _modules(parts).items():
            load_tensors(module.state_dict(), groups[name])
        for name, own in _optimizers(parts, optimizer).items():
            load_optimizer_tensors(own, groups[f"{name}-optimizer"])
        if parts.meta is not None:
            restore_meta(parts.meta, groups, state)
        parts.stream.load_state_dict(state["stream"])
        parts.feedback.load_state_dict(state["feedback"])
        rank = f"{distributed.rank()}/"
        if random := {n.removeprefix(rank): t for n, t in groups["random"].items() if n.startswith(rank)}:
            set_random_state(random)  # a process beyond the earlier number of them keeps its initial random state


def captured_meta(meta: MetaUpdate) -> tuple[Tensors, Json]:
    """Return the tensors by group and the JSON-ready state that later steps need, apart from phi and its optimizer."""
    kept = {f"{domain}/{name}": g for domain, of_domain in meta.kept.items() for name, g in of_domain.items()}
    strength = None if meta.strength is None else meta.strength.state_dict()
    groups: Tensors = {"direction": meta.direction or {}, "feedback-gradients": kept}
    return groups, {"meta_updates": meta.updates, "strength": strength}


def restore_meta(meta: MetaUpdate, groups: Tensors, state: Json) -> None:
    """Restore the result of `captured_meta`, inside `fitting`."""
    meta.updates = state["meta_updates"]
    if meta.strength is not None:
        meta.strength.load_state_dict(state["strength"])
    theta_S = meta.theta_at()
    meta.direction = {name: placed(u, theta_S[name]) for name, u in groups["direction"].items()} or None
    meta.kept = {}
    for key, g in groups["feedback-gradients"].items():
        domain, name = key.rsplit("/", 1)
        meta.kept.setdefault(domain, {})[name] = placed(g, theta_S[name])


def designer_optimizer(meta: MetaUpdate) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizer of phi by the name of its group; empty without phi."""
    return {} if meta.optimizer is None else {"designer": meta.optimizer}


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Turn errors while restoring parts that do not fit into one UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"the checkpoint is of a run with other parts than the recipe's ({what})") from error


class StepSnapshot:
    """A copy of what a failing step of Algorithm 1 may have changed, enough to run the step again.

    theta and its optimizer are updated last, so they need no copy. Nor does phi.

    Args:
        parts: of the run.
        updates: whether the step begins with a meta update.
    """

    def __init__(self, parts: Parts, *, updates: bool) -> None:
        self.parts = parts
        self.random = random_state()
        self.cursors = {"stream": parts.stream.state_dict(), "feedback": parts.feedback.state_dict()}
        self.groups: Tensors = {}
        self.counters: Json = {}
        if parts.meta is None:
            return
        self.groups, self.counters = captured_meta(parts.meta)
        for name, optimizer in parts.optimizers.items() if updates else ():  # of heads, fitted on every feedback batch
            tensors = optimizer_tensors(optimizer)
            self.groups[name] = {key: value.clone() for key, value in parts.modules[name].state_dict().items()}
            self.groups[f"{name}-optimizer"] = {key: value.clone() for key, value in tensors.items()}

    @property
    def updated(self) -> bool:
        """Whether the step's meta update was made, so that the failure came after it."""
        return self.parts.meta is not None and self.parts.meta.updates != self.counters["meta_updates"]

    def captured(self, optimizer: AdamW) -> tuple[Tensors, Json]:
        """Return the run's state before the step, or after its meta update if that was made."""
        set_random_state(self.random)
        self.parts.stream.load_state_dict(self.cursors["stream"])
        self.parts.feedback.load_state_dict(self.cursors["feedback"])
        groups, state = captured(self.parts, optimizer)
        return (groups, state) if self.updated else (groups | self.groups, state | self.counters)


def _modules(parts: Parts) -> dict[str, nn.Module]:
    return {**({} if parts.designer is None else {"designer": parts.designer}), **parts.modules}


def _optimizers(parts: Parts, optimizer: AdamW) -> dict[str, torch.optim.Optimizer]:
    own: dict[str, torch.optim.Optimizer] = {"learner": optimizer.torch, **parts.optimizers}
    return own if parts.meta is None else own | designer_optimizer(parts.meta)
