"""Assemble a recipe's parts and run the training loop; used by sessions, probes and profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vpretrain.config import Recipe
from vpretrain.method.algorithm import StepRecord, continue_pretraining
from vpretrain.method.step import Schedule
from vpretrain.modality import modality_of
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts


def begin(recipe: Recipe) -> Parts:
    """Set the recipe's threads and seed, and assemble its parts. Raises UserError if it cannot work."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    parts: Parts = modality_of(recipe).assemble(recipe)
    if parts.learner.device.type == "cuda":
        torch.cuda.set_device(parts.learner.device)  # its memory is measured, and its random state saved
    return parts


def schedule_of(recipe: Recipe, parts: Parts) -> Schedule:
    """Return the schedule of a run's meta updates."""
    return Schedule(recipe.value.every_steps, recipe.designer.burn_in_steps if parts.meta is not None else 0)


def train(
    recipe: Recipe, parts: Parts, optimizer: AdamW, *, steps: Iterable[int], after_step: Callable[[StepRecord], object]
) -> None:
    """Run Algorithm 1 with the recipe's settings, or the arm's own training in its place."""
    if parts.train is not None:
        parts.train(optimizer, steps, after_step)
        return
    continue_pretraining(
        learner=parts.learner,
        stream=parts.stream,
        construction=parts.construction,
        base=parts.base,
        optimizer=optimizer,
        meta=parts.meta,
        schedule=schedule_of(recipe, parts),
        optimizer_aware=recipe.effective_value.metric == "adamw",
        steps=steps,
        after_step=after_step,
    )
