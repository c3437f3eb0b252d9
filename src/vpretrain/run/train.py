"""A recipe's training loop over its parts: what sessions, probes and profiles all run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vpretrain.algorithm import StepRecord, continue_pretraining
from vpretrain.config import Recipe
from vpretrain.parts import Parts
from vpretrain.run.optimizer import AdamW


def train(
    recipe: Recipe, parts: Parts, optimizer: AdamW, *, steps: Iterable[int], after_step: Callable[[StepRecord], Any]
) -> None:
    """Algorithm 1 with the settings of the recipe."""
    continue_pretraining(
        learner=parts.learner,
        stream=parts.stream,
        construction=parts.construction,
        base=parts.base,
        optimizer=optimizer,
        meta=parts.meta,
        every_steps=recipe.value.every_steps,
        burn_in_steps=recipe.designer.burn_in_steps if parts.meta is not None else 0,
        optimizer_aware=recipe.effective_value.metric == "adamw",
        steps=steps,
        after_step=after_step,
    )
