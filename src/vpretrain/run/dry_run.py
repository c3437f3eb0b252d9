"""The dry run: measure a step before a run with a budget in minutes, without changing anything."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

from vpretrain.config import Recipe
from vpretrain.method.step import learner_losses
from vpretrain.method.strength import least_steps
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


def few_steps(recipe: Recipe, parts: Parts, steps: int | None) -> str | None:
    """Return a warning if a run of so many steps is too short for an arm whose strength is automatic; None: not known to be."""
    strength = None if parts.meta is None else parts.meta.strength
    if not steps or recipe.budget.steps == 0 or strength is None or strength.fixed:
        return None
    least = least_steps(recipe.value.every_steps, recipe.designer.burn_in_steps)
    if steps >= least:
        return None
    about = "" if recipe.budget.steps is not None else "about "  # at the pace of a measured step
    short = (
        f"{recipe.arm} makes {about}{steps} steps, too few for two judgements of its strength, and may train as "
        f"{recipe.baseline} throughout"
    )
    if recipe.budget.minutes is None or recipe.budget.steps is not None:
        return f"{short}: raise budget.steps to {least} or more"
    minutes = math.ceil(recipe.budget.minutes * least / steps)
    shorter = " or stream.length" if recipe.modality == "language" else ""
    return f"{short}: raise budget.minutes to about {minutes}, or make steps shorter by stream.batch_size{shorter}"


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
