"""Fit a head for a released backbone that has none: the head alone, before the run, on the unchanged backbone.

Continuing with a random head destroys the features of a pretrained backbone, because the head's gradients are meaningless.
Shapes: V views, B images, N outputs of a view, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
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
_Features = tuple[Tensor, Tensor, Tensor]  # of a batch: as `_features` returns them
_POOL = 24  # batches whose features DINO's steps cycle through


def warm_up(recipe: Recipe, learner: VisionLearner) -> None:
    """Train the head on the frozen backbone with the objective's own loss, then copy the student to the teacher.

    The images are the stream's, in another order; the run's own stream and random state do not change.
    """
    config = learner.config
    if config.warm_up_steps == 0:
        return
    stream = VisionStream(recipe.stream, seed=recipe.seed + 1_000_003)
    stream.device = learner.device
    head = {name: p for name, p in learner.named_parameters() if name.startswith("head.")}
    theta = {name: p.detach() for name, p in head.items()}
    optimizer = torch.optim.AdamW(head.values(), lr=config.warm_up_lr)
    with torch.random.fork_rng():
        if isinstance(learner, DinoLearner):
            losses = _dino_losses(learner, _pool(learner, stream))
        else:
            losses = _losses(learner, stream, theta)
        with steady("    head warm-up", config.warm_up_steps, "steps") as done:
            for step, (loss, task) in enumerate(itertools.islice(losses, config.warm_up_steps), start=1):
                for name, gradient in learner.gradient(loss, theta).items():
                    head[name].grad = gradient
                nn.utils.clip_grad_norm_(head.values(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                learner.follow([task], learner.ema)
                done(step)
    learner.follow([], 0.0)


def _losses(learner: VisionLearner, stream: VisionStream, theta: Parameters) -> Iterator[tuple[Loss, Task]]:
    """Yield losses of the whole forward pass, on new images in each step."""
    while True:
        with learner.autocast():
            inputs = learner.prepare(stream.next()[0], theta)
        task = Task(inputs, TeacherTarget(inputs.prepared[2]))

        def loss(head: Parameters, inputs: ViewBatch = inputs, task: Task = task) -> Tensor:
            with learner.autocast():
                return learner.loss(learner.forward(inputs, head), task)

        yield loss, task


def _pool(learner: DinoLearner, stream: VisionStream) -> list[_Features]:
    """Compute the frozen backbone's features of some batches once: the head's steps are many times faster than these."""
    pool = []
    with steady("    head's images", _POOL, "batches") as done:
        for number in range(_POOL):
            pool.append(_features(learner, stream.next()[0]))
            done(number + 1)
    return pool


def _dino_losses(learner: DinoLearner, pool: Sequence[_Features]) -> Iterator[tuple[Loss, Task]]:
    """Yield losses of the head alone, on the batches' features in turn."""
    while True:
        for student_VBND, teacher_VBND, local_VBD in pool:
            with torch.no_grad():
                taught_VBNP = _apply(learner.teacher, teacher_VBND)
            task = Task(None, TeacherTarget(taught_VBNP))

            def loss(
                head: Parameters, views: tuple[Tensor, Tensor] = (student_VBND, local_VBD), task: Task = task
            ) -> Tensor:
                student, local = (_apply(partial(learner.theta.forward_with, head), features) for features in views)
                return learner.loss(DinoState(student, task.target.outputs, None, views[0], local, len(local)), task)

            yield loss, task


def _features(learner: DinoLearner, batch: ViewBatch) -> _Features:
    """Return what the head gets: of the global views for student and teacher [V, B, N, D], of the local views [V, B, D]."""
    views = batch.global_VB3HW.shape[:2]
    images_B3HW, _, _, hidden_BN = learner.seen(batch, 0)
    student = teacher = learner.features_of(learner.features(images_B3HW), batch).unflatten(0, views)
    if hidden_BN is not None:
        student = learner.features_of(learner.features(images_B3HW, hidden_BN), batch).unflatten(0, views)
    if len(batch.local_VB3HW) == 0:
        return student, teacher, batch.local_VB3HW.new_zeros(0, views[1], learner.backbone.width)
    local = [learner.backbone.summary(learner.features(view)) for view in batch.local_VB3HW]
    return student, teacher, torch.stack(local)


def _apply(network: Callable[..., Tensor], features: Tensor) -> Tensor:
    return network("head", features.flatten(0, -2)).unflatten(0, features.shape[:-1])
