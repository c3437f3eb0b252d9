"""What `vpretrain check` does in every modality: one meta update and one learner step, on a tiny copy of the learner."""

from __future__ import annotations

import copy

import torch

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.parts import Parts
from vpretrain.run.optimizer import AdamW


def one_step(recipe: Recipe, parts: Parts) -> str:
    """Says what was done. Raises UserError if no stream row can be aligned with the feedback."""
    batches = parts.stream.next()
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer, horizon=1)
    done = "a learner step"
    if parts.meta is not None:
        short = copy.copy(parts.meta)
        short.part = {**short.part, "rows": 1}
        if not short(batches):
            raise UserError(
                "value.domains=matched, but no stream row has a domain of the feedback "
                f"({', '.join(parts.feedback.weights)}): name the domains alike, or set value.domains=sum"
            )
        done = "a meta update and a learner step"
    with torch.no_grad():
        inputs = parts.construction.inputs(batches[0])
    state = parts.learner.forward(inputs)
    with torch.no_grad():
        task = parts.construction.targets(inputs, state.detach()).detach()
    loss = parts.learner.loss(state, task)
    loss.backward()
    optimizer.step(float(loss.detach()))
    parts.learner.after_step([task], optimizer.progress)
    return f"{done} on a tiny copy of the learner: fine"
