"""`vpretrain check` in every modality: one meta update and one learner step, on a tiny copy of the learner."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from vpretrain.config import Recipe
from vpretrain.console import working
from vpretrain.errors import UserError
from vpretrain.method.step import learner_losses
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts


def one_step(recipe: Recipe, parts: Parts) -> str:
    """Make the step; return a summary. Raises UserError if no stream row can be aligned with the feedback."""
    done = "a learner step" if parts.meta is None else "a meta update and a learner step"
    step = f"{done} on a tiny copy of the learner"
    with working(step):
        _make(recipe, parts)
    return f"{step}: fine"


def _make(recipe: Recipe, parts: Parts) -> None:
    batches = parts.stream.next()
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer, total_steps=1)
    meta = parts.meta
    if meta is not None:
        meta.part = {**meta.part, "rows": 1}
    with contextlib.nullcontext() if meta is None else meta.dry_run(batches):
        if meta is not None and meta.unmatched:
            raise UserError(
                "value.domains=matched, but no stream row has a domain of the feedback "
                f"({', '.join(parts.feedback.weights)}): name the domains alike, or set value.domains=sum"
            )
        (part,) = learner_losses(parts.learner, parts.construction, batches[:1])
        part.loss.backward()
    optimizer.step(float(part.loss.detach()))
    parts.learner.after_step([part.task], optimizer.progress)


def activation_bytes(*, tokens: int, width: int, blocks: int, bf16: bool) -> int:
    """Return the bytes that transformer blocks keep for backward: 34 per token and unit of width in half precision.

    (Korthikanti et al., arXiv 2205.05198, without the attention matrix. `vpretrain estimate` counts the tensors one by one.)
    """
    return 34 * (1 if bf16 else 2) * tokens * width * blocks


def memory_line(parts: Mapping[str, int], learner: str) -> str:
    """Return the line for bytes of memory by content, with a description of the learner."""
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)
    total = f"{sum(parts.values()) / 2**30:.1f} GiB"
    return f"memory: about {total} ({listed}; {learner}), and what Python and torch take themselves"
