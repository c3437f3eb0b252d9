"""L_pre under a task, and L_down, as functions of some of the learner's parameters; in the learner's own precision.

That precision is enough for gradients that give a direction or judge one; values and their tangents are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from vpretrain.method.protocols import AnyBatch, Construction, Learner, Parameters, Targets


def detached(learner: Learner, names: Iterable[str]) -> Parameters:
    """Return the learner's parameters of these names, detached."""
    chosen = set(names)
    return {n: p.detach() for n, p in learner.named_parameters() if n in chosen}


def stream_loss(
    learner: Learner,
    construction: Construction,
    batch: AnyBatch,
    rank_weight: float,
    theta: Parameters,
    targets: Targets,
    minus: Targets | None = None,
) -> Callable[[Parameters], Tensor]:
    """Return L_pre on a stream batch by parameters, less L_pre with the targets `minus` if they are given.

    Args:
        learner: evaluated.
        construction: makes the inputs.
        batch: of the stream.
        rank_weight: the batch's weight relative to the mean over processes; scales the loss.
        theta: the parameters that it will be evaluated at: what does not depend on them is computed here, once.
        targets: of the task.
        minus: of the task whose loss is subtracted.
    """
    inputs = learner.prepare_in_own_precision(construction.inputs(batch), theta)

    def loss(parameters: Parameters) -> Tensor:
        with learner.autocast():
            state = learner.forward(inputs, parameters)
            found = learner.loss(state, targets(inputs, state.detach()).detach())
            if minus is not None:
                found = found - learner.loss(state, minus(inputs, state.detach()).detach())
            return rank_weight * found

    return loss


def feedback_loss(learner: Learner, batch: AnyBatch, rank_weight: float = 1.0) -> Callable[[Parameters], Tensor]:
    """Return L_down on a feedback batch by parameters, times `rank_weight`."""

    def loss(parameters: Parameters) -> Tensor:
        with learner.autocast():
            return rank_weight * learner.evaluate(batch, parameters)

    return loss
