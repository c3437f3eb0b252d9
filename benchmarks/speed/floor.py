"""FLOPs of a meta update as counted by torch, and their lower bound (docs/METHODS.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from vpretrain.method.step import learner_losses
from vpretrain.method.subset import blocks_of
from vpretrain.run.parts import Parts
from vpretrain.scaling.cost import Read, Transformer, designer_floor


def flops(parts: Parts, batch: Any) -> dict[str, float]:
    """Count FLOPs of one learner step on a micro-batch, and those that a meta update and the designer add to it.

    Returns:
        `step`: forward and backward of the base task; `meta`: a meta update, with the lower bound `meta_floor`; `designer`:
        its forward pass in every step, with the lower bound `designer_floor`.
    """
    learner: Any = parts.learner
    assert parts.meta is not None
    meta = parts.meta

    def step(construction: Any) -> None:
        for part in learner_losses(learner, construction, [batch]):
            part.loss.backward()

    def updated() -> None:
        meta([batch])
        step(parts.base)

    updated()  # the first call also tries out the learner
    alone = counted(lambda: step(parts.base))
    # On a CPU torch does not count fused attention, so the floor leaves it out too.
    floor = floors(parts, batch, attention=False)
    return {
        "step": alone,
        "meta": counted(updated) - alone,
        "meta_floor": round(floor["feedback"] + floor["value"]),
        "designer": counted(lambda: step(parts.construction)) - alone,
        "designer_floor": floor["designer"],
    }


def floors(parts: Parts, batch: Any, *, attention: bool) -> dict[str, float]:
    """Return the lower bounds of the FLOPs on a micro-batch, with those of attention (in full) or without.

    Returns:
        `step`: forward and backward of the base task; of an arm with a meta update also `feedback` and `value`, its two parts,
        and `designer`, its forward pass in every step.
    """
    learner: Any = parts.learner
    blocks = list(blocks_of(learner.module)[1])
    every = sum(p.numel() for block in blocks for p in block.parameters())
    text = learner.model.config.get_text_config()
    query = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    head = learner.model.get_output_embeddings().weight.numel()
    of_scores = 4 * len(blocks) * query if attention else 0
    model = Transformer(blocks=every, head=head, attention=of_scores, trained_blocks=every, trained_head=True)
    found = {"step": model.step(_read(batch))}
    if parts.meta is None:
        return found
    cursor = parts.feedback.state_dict()
    fed = next(iter(parts.feedback.next().values()))
    parts.feedback.load_state_dict(cursor)  # so that the next update gets the same pairs
    part = batch.restrict(domain=None, **parts.meta.part)
    theta = dict(learner.named_parameters())
    share = sum(theta[name].numel() for name in parts.meta.subset) / every
    phi = sum(p.numel() for p in parts.construction.parameters())
    return found | {
        "feedback": model.feedback_floor(share, _read(fed)),
        "value": model.value_floor(share, _read(part), phi),
        "designer": designer_floor(phi, batch.units),
    }


def _read(batch: Any) -> Read:
    return Read(batch.units, len(batch.targets_N), batch.ids_BT.shape[1])


def counted(function: Callable[[], None]) -> int:
    """Count FLOPs of matrix products and attention.

    The head's gradient is `addmm_`, which torch does not count, and a sparse product, which it counts as if it were dense: in
    fp32 the two cancel.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
