"""Fit a head for a released backbone that has none: the head alone, before the run, on the unchanged backbone.

Continuing with a random head destroys the features of a pretrained backbone, because the head's gradients are meaningless.
Shapes: V views, B images, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vpretrain.console import steady
from vpretrain.method.protocols import Parameters, Task
from vpretrain.vision.config import Recipe
from vpretrain.vision.data.stream import VisionStream
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.dino import DinoLearner, DinoState
from vpretrain.vision.model.learner import VisionLearner
from vpretrain.vision.task.construction import TeacherTarget

Loss = Callable[[Parameters], Tensor]  # as a function of the head
_POOL = 24  # batches whose features DINO's steps cycle through


def warm_up(recipe: Recipe, learner: VisionLearner) -> None:
    """Train the head on the frozen backbone with the objective's own loss, then copy the student to the teacher.

    The images are the stream's, in another order; the run's own stream and random state do not change.
    """
    config = recipe.learner.dino if recipe.learner.objective == "dino" else recipe.learner.ijepa
    if config.warm_up_steps == 0:
        return
    stream = VisionStream(recipe.stream, seed=recipe.seed + 1_000_003)
    stream.device = learner.device
    head = {name: p for name, p in learner.named_parameters() if name.startswith("head.")}
    at = {name: p.detach() for name, p in head.items()}
    optimizer = torch.optim.AdamW(head.values(), lr=config.warm_up_lr)
    pooled = _POOL if isinstance(learner, DinoLearner) else 0
    with torch.random.fork_rng(), steady("    head warm-up", pooled + config.warm_up_steps) as done:
        losses = (
            _dino_losses(learner, stream, done) if isinstance(learner, DinoLearner) else _losses(learner, stream, at)
        )
        for step in range(config.warm_up_steps):
            loss, task = next(losses)
            for name, gradient in learner.gradient(loss, at).items():
                head[name].grad = gradient
            nn.utils.clip_grad_norm_(head.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            learner.follow([task], learner.ema)
            done(pooled + step + 1)
    learner.follow([], 0.0)


def _losses(learner: VisionLearner, stream: VisionStream, at: Parameters) -> Iterator[tuple[Loss, Task]]:
    """Yield losses of the whole forward pass, on new images in each step."""
    while True:
        with learner.autocast():
            inputs = learner.prepare(stream.next()[0], at)
        task = Task(inputs, TeacherTarget(inputs.prepared[2]))

        def loss(head: Parameters, inputs: ViewBatch = inputs, task: Task = task) -> Tensor:
            with learner.autocast():
                return learner.loss(learner.forward(inputs, head), task)

        yield loss, task


def _dino_losses(
    learner: DinoLearner, stream: VisionStream, done: Callable[[int], None]
) -> Iterator[tuple[Loss, Task]]:
    """Yield losses of the head alone, on one vector per view, computed once by the frozen backbone: many times faster."""
    pool = []
    for number in range(_POOL):
        batch = stream.next()[0]
        pool.append([_summaries(learner, views) for views in (batch.global_VB3HW, batch.local_VB3HW)])
        done(number + 1)
    while True:
        for global_VBD, local_VBD in pool:
            with torch.no_grad():
                teacher_VBP = _apply(learner.teacher, global_VBD)
            task = Task(None, TeacherTarget(teacher_VBP))

            def loss(
                head: Parameters, views: tuple[Tensor, Tensor] = (global_VBD, local_VBD), task: Task = task
            ) -> Tensor:
                student, local = (_apply(partial(learner.theta.forward_with, head), summaries) for summaries in views)
                return learner.loss(DinoState(student, task.target.outputs, None, local, len(local)), task)

            yield loss, task


def _summaries(learner: DinoLearner, views_VB3HW: Tensor) -> Tensor:
    if len(views_VB3HW) == 0:
        return views_VB3HW.new_zeros(0, views_VB3HW.shape[1], learner.backbone.width)
    return torch.stack([learner.backbone.summary(learner.features(view)) for view in views_VB3HW])


def _apply(network: Callable[..., Tensor], summary_VBD: Tensor) -> Tensor:
    return network("head", summary_VBD.flatten(0, 1)).unflatten(0, summary_VBD.shape[:2])
