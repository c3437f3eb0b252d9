"""What a run's construction makes of a batch, token by token. Shapes: N targets, K candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from vpretrain.errors import UserError
from vpretrain.language.batch import TokenBatch
from vpretrain.language.config import DESIGNED, Recipe
from vpretrain.language.construction import candidate_values
from vpretrain.parts import Parts
from vpretrain.recipe import load_recipe
from vpretrain.run.checkpoint import checkpoints, load_newest
from vpretrain.run.optimizer import AdamW
from vpretrain.run.state import restore
from vpretrain.run.train import begin


@dataclass(frozen=True)
class Steering:
    """Targets and what they are made from.

    Attributes:
        candidates_NK: token ids C_t; the first is the true token.
        p_NK: the learner's probabilities of them.
        q_NK: the target.
        alpha_N: the gate.
        values_NK: a_t(v) along the present value direction, see `candidate_values`; None before the first meta update.
    """

    candidates_NK: Int[Tensor, "N K"]
    p_NK: Float[Tensor, "N K"]
    q_NK: Float[Tensor, "N K"]
    alpha_N: Float[Tensor, " N"]
    values_NK: Float[Tensor, "N K"] | None


def steering(parts: Parts, batch: TokenBatch) -> Steering:
    """Of a batch, as a meta step sees it: without dropout, and without a trace."""
    with torch.no_grad(), parts.learner.meta_mode():
        state = parts.learner.forward(batch).detach()
        task = parts.construction.targets(batch, state)
        target, values_NK = task.target, None
        if parts.meta is not None:
            with forward_ad.dual_level():
                dual = parts.meta.along(batch)
                values_NK = None if dual is None else candidate_values(dual, target.candidates_NK)
        p_NK = (state.logits.at(target.candidates_NK) - state.logits.lse_N[:, None]).exp()
    return Steering(target.candidates_NK, p_NK, target.q_NK, task.side["alpha_N"], values_NK)


def at_newest_checkpoint(run: Path) -> tuple[Recipe, Parts, int]:
    """A run's recipe, its parts as they were at its newest checkpoint, and the step of that. The stream goes on from there.

    Args:
        run: its directory, wherever that has gone since.

    Raises:
        UserError: the directory is not that of a language run, or the run has no designer, or no checkpoint, or its learner or
            data are out of reach.
    """
    recipe = _recipe_of(run)
    parts = begin(recipe)
    groups, state = load_newest(run / "checkpoints")
    restore(parts, AdamW(parts.learner.named_parameters(), recipe.optimizer), groups, state)
    return recipe, parts, state["budget"]["step"]


def _recipe_of(run: Path) -> Recipe:
    if not (run / "recipe.yaml").exists():
        raise UserError(f"{run} is not the directory of a run: it has no recipe.yaml")
    recipe = load_recipe(run / "recipe.yaml").model_copy(update={"output": str(run.parent), "name": run.name})
    if not isinstance(recipe, Recipe):
        raise UserError("a gate is what language designers have: for views see views.png in the run's directory")
    if recipe.arm not in DESIGNED:
        raise UserError(f"{run} is a run of {recipe.arm}, which has no designer: name one of an arm like v")
    if not checkpoints(run / "checkpoints"):
        raise UserError(f"{run} has no checkpoint with a designer yet: run it first")
    return recipe
