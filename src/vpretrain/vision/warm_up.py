"""A head for a released backbone that comes without one: fitted alone, before the run, on the untouched backbone.

Continuing with a random head wrecks the features that a pretrained backbone has (its gradients point nowhere).
Shapes: V views, B pictures, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from vpretrain.run.progress import steady
from vpretrain.task import Task
from vpretrain.vision.config import Recipe
from vpretrain.vision.dino import DinoLearner, DinoState
from vpretrain.vision.stream import VisionStream
from vpretrain.vision.target import TeacherTarget

_POOL = 24  # batches whose features the steps go round


def warm_up(recipe: Recipe, learner: DinoLearner) -> None:
    """Train the head with DINO's own loss on frozen features; afterwards the teacher is the student.

    The pictures are the stream's, in another order; the run's own stream and random numbers stay where they are.
    """
    config = recipe.learner.dino
    if config.warm_up_steps == 0:
        return
    stream = VisionStream(recipe.stream, seed=recipe.seed + 1_000_003)
    stream.device = learner.device
    head, momentum = learner.module.head, learner.ema
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.warm_up_lr)
    with torch.random.fork_rng(), steady("    head warm-up", _POOL + config.warm_up_steps) as done:
        pool = []
        for number in range(_POOL):
            (batch, *_) = stream.next()
            pool.append([_summaries(learner, views) for views in (batch.global_VB3HW, batch.local_VB3HW)])
            done(number + 1)
        for step in range(config.warm_up_steps):
            global_VBD, local_VBD = pool[step % _POOL]
            with torch.no_grad():
                teacher_VBP = _apply(learner.teacher.head, global_VBD)
            state = DinoState((_apply(head, global_VBD), _apply(head, local_VBD)), teacher_VBP)
            task = Task(None, TeacherTarget(teacher_VBP))
            learner.loss(state, task).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            learner.follow([task], momentum)
            done(_POOL + step + 1)
    learner.teacher.head.load_state_dict(head.state_dict())


def _summaries(learner: DinoLearner, views_VB3HW: torch.Tensor) -> torch.Tensor:
    return torch.stack([learner.backbone.summary(learner.features(view)) for view in views_VB3HW])


def _apply(head: nn.Module, summary_VBD: torch.Tensor) -> torch.Tensor:
    return head(summary_VBD.flatten(0, 1)).unflatten(0, summary_VBD.shape[:2])
