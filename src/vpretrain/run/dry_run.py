"""The dry run: measure a step before a run with a budget in minutes, without changing anything."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from vpretrain.config import Recipe
from vpretrain.method.step import learner_losses
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.timing import now


def planned_steps(recipe: Recipe, parts: Parts, optimizer: AdamW) -> int:
    """Return the schedule's total steps: the budget's, or as many as fit in its minutes at the pace of a measured step."""
    if recipe.budget.steps is not None:
        return max(1, recipe.budget.steps)
    assert recipe.budget.minutes is not None
    return max(1, round(60 * recipe.budget.minutes / seconds_of_a_step(recipe, parts, optimizer)))


def seconds_of_a_step(recipe: Recipe, parts: Parts, optimizer: AdamW) -> float:
    """Measure the seconds of a step, with its fraction of a meta update, without changing anything.

    The optimizers' own time is not included. The first pass only warms up allocators and caches.
    """
    seconds = 0.0
    stateful: list[Any] = [parts.stream, parts.feedback, *parts.modules.values(), *parts.optimizers.values()]
    kept = [copy.deepcopy(part.state_dict()) for part in stateful]
    random = random_state()
    for _ in range(2):
        start = now()
        batches = parts.stream.next()
        with contextlib.nullcontext() if parts.meta is None else parts.meta.dry_run(batches):
            # As if each meta update had its own feedback batch.
            seconds = (now() - start) / recipe.value.every_steps
            start = now()
            for part in learner_losses(parts.learner, parts.construction, batches[:1]):
                part.loss.backward()
            seconds += (now() - start) * len(batches)
        optimizer.torch.zero_grad(set_to_none=True)
    for part, state_dict in zip(stateful, kept, strict=True):
        part.load_state_dict(state_dict)
    set_random_state(random)
    return seconds
