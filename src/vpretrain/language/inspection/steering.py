"""The targets that a run's construction builds for a batch, token by token. Shapes: N targets, K candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.language.config import Recipe
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.task.values import candidate_values
from vpretrain.recipe import load_recipe
from vpretrain.run.checkpoint import checkpoints, load_newest
from vpretrain.run.find import several
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.state import restore
from vpretrain.run.train import begin


@dataclass(frozen=True)
class Steering:
    """Targets, and the quantities that they are computed from."""

    candidates_NK: Int[Tensor, "N K"]  # token ids C_t; the first is the true token
    p_NK: Float[Tensor, "N K"]  # the learner's probabilities of them
    q_NK: Float[Tensor, "N K"]  # the target
    alpha_N: Float[Tensor, " N"]  # the gate
    # a_t(v) along the current value direction, see `vpretrain.language.task.values`; None before the first meta update.
    values_NK: Float[Tensor, "N K"] | None


def steering(parts: Parts, batch: TokenBatch) -> Steering:
    """Build the targets of a batch as in a meta step, without dropout or side effects."""
    learner: Any = parts.learner
    with torch.no_grad(), learner.meta_mode():
        state = learner.observe(batch)
        task = parts.construction.targets(batch, state)
        target = task.target
        values_NK = candidate_values(learner, batch, state, None if parts.meta is None else parts.meta.direction)
        p_NK = (state.logits.candidate_logits(target.candidates_NK) - state.logits.lse_N[:, None]).exp()
    return Steering(target.candidates_NK, p_NK, target.q_NK, task.side["alpha_N"], values_NK)


def at_newest_checkpoint(run: Path) -> tuple[Recipe, Parts, int]:
    """Load a run's recipe, its parts at the newest checkpoint, and the step of that. The stream continues from there.

    The run's directory may have been moved.

    Raises:
        UserError: the directory is not that of a language run, its targets follow no feedback, it holds several runs or
            has no checkpoint, or its learner or data cannot be loaded.
    """
    if not (run / "recipe.yaml").exists():
        raise UserError(f"{run} is not the directory of a run: it has no recipe.yaml")
    recipe = load_recipe(run / "recipe.yaml").model_copy(update={"output": str(run.parent), "name": run.name})
    if not isinstance(recipe, Recipe):
        raise UserError("a gate is what language targets have: for views see views.png in the run's directory")
    inner = [path.parent for path in sorted(run.glob("*/metrics.jsonl"))]
    if inner and not (run / "metrics.jsonl").exists():
        raise several(run, inner)
    if not recipe.arms[recipe.arm].steered:
        raise UserError(f"{run} is a run of {recipe.arm}, whose targets follow no feedback: name one of an arm like v")
    if not checkpoints(run / "checkpoints"):
        raise UserError(
            f"{run} has no checkpoint: it was stopped before its first, or clean --finished has removed it; run it again"
        )
    parts = begin(recipe)
    groups, state = load_newest(run / "checkpoints")
    restore(parts, AdamW(parts.learner.named_parameters(), recipe.optimizer), groups, state)
    return recipe, parts, state["budget"]["step"]
