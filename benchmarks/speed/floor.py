"""FLOPs of a meta update as torch counts them, and the fewest that it could take (METHOD, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vpretrain.parts import Parts
from vpretrain.subset import blocks_of


def flops(parts: Parts, batch: Any) -> dict[str, float]:
    """Of one learner step on a micro-batch, and of what a meta update and the designer add to it.

    Returns:
        `step`: forward and backward of the base recipe; `meta`: a meta update, `meta_floor`; `designer`: its forward pass in
        every step, `designer_floor`.
    """
    learner: Any = parts.learner
    assert parts.meta is not None
    meta = parts.meta

    def step(construction: Any) -> None:
        state = learner.forward(batch)
        with torch.no_grad():
            task = construction.targets(batch, state.detach())
        learner.loss(state, task).backward()

    def updated() -> None:
        meta([batch])
        step(parts.base)

    updated()  # the first time the learner is tried out
    alone = counted(lambda: step(parts.base))
    cursor = parts.feedback.state_dict()
    fed = next(iter(parts.feedback.next().values()))
    parts.feedback.load_state_dict(cursor)  # the update that is counted gets the same pairs
    part = batch.restrict(domain=None, **meta.part)
    blocks = list(blocks_of(learner.module)[1])
    every = sum(p.numel() for block in blocks for p in block.parameters())
    theta = dict(learner.named_parameters())
    in_s = sum(theta[name].numel() for name in meta.subset)
    head = learner.model.get_output_embeddings().weight.numel()
    phi = sum(p.numel() for p in parts.construction.parameters())
    return {
        "step": alone,
        "meta": counted(updated) - alone,
        # g_down: forward through all blocks, the head on the targets, backward through head and S. V: a tangent through S,
        # of which the learner's own pass has the states. The designer: forward and backward.
        "meta_floor": 2
        * (fed.tokens * (every + 2 * in_s) + 2 * len(fed.targets_N) * head + part.tokens * (2 * in_s + 3 * phi)),
        "designer": counted(lambda: step(parts.construction)) - alone,
        "designer_floor": 2 * batch.tokens * phi,
    }


def counted(function: Callable[[], None]) -> int:
    """FLOPs of matrix products and attention.

    The head's gradient is `addmm_`, which torch does not count, and a sparse product, which it counts as if it were dense: in
    fp32 the two cancel.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
