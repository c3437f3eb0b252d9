"""DINO: student and teacher match across views. Shapes: V views, B images, P outputs of the head, D the backbone's width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain import distributed
from vpretrain.method.protocols import Parameters, Task
from vpretrain.vision.config import DinoConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.learner import ViewState, VisionLearner


@dataclass(frozen=True)
class DinoState(ViewState):
    """The outputs of student and teacher.

    Attributes:
        local: the student's head outputs of the local views.
    """

    local: Float[Tensor, "V B P"]


class DinoHead(nn.Module):
    """DINO's projection head: three layers, a normalised bottleneck, a last layer with weights of norm 1."""

    def __init__(self, width: int, config: DinoConfig) -> None:
        super().__init__()
        sizes = itertools.pairwise([width, config.hidden, config.hidden, config.bottleneck])
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in sizes]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)  # not DINO's 0.02: so that outputs differ from the start
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last = nn.Parameter(torch.randn(config.outputs, config.bottleneck))

    def forward(self, summary_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        """Return outputs in [-1, 1]: cosines with the prototypes."""
        return F.linear(F.normalize(self.mlp(summary_BD), dim=-1, eps=1e-6), F.normalize(self.last, dim=-1))


class DinoLearner(VisionLearner):
    """A vision transformer under DINO's objective.

    Args:
        backbone: the pretrained transformer.
        config: settings of the objective.
        how: bf16 and parallel, see `VisionLearner`.
    """

    def __init__(self, backbone: Backbone, config: DinoConfig, **how: Any) -> None:
        head = DinoHead(backbone.width, config)
        super().__init__(backbone, head, outputs=config.outputs, ema=config.ema, **how)
        self.config = config

    def seen(self, inputs: ViewBatch, stop: int) -> tuple[Any, ...]:
        """Return all global views, with all their tokens."""
        return (inputs.global_VB3HW.flatten(0, 1), stop)

    def teach(self, inputs: ViewBatch) -> Float[Tensor, "V B P"]:
        """Return the teacher's outputs for the same global views as the student's, learned or not."""
        with torch.no_grad():
            return self._project(self.teacher, inputs.global_VB3HW)

    def forward(self, inputs: ViewBatch, parameters: Parameters | None = None) -> DinoState:
        """Run student and teacher on the views; `parameters` (of S) replace the student's, and then no others get gradients."""
        if parameters is None:
            with self.autocast():
                student_VBP = self._project(self.theta.forward, inputs.global_VB3HW)
                local_VBP = self._project(self.theta.forward, inputs.local_VB3HW)
                return DinoState(student_VBP, self.teach(inputs), local_VBP)
        assert len(inputs.local_VB3HW) == 0, "meta steps leave local crops out (see ViewBatch.restrict)"
        tokens_BTD, taught_VBP = self.tokens(inputs, parameters)
        outputs = self.theta.forward_with(parameters, "head", self.backbone.summary(tokens_BTD))
        student_VBP = outputs.unflatten(0, inputs.global_VB3HW.shape[:2])
        return DinoState(student_VBP, taught_VBP, student_VBP[:0].detach())

    def loss(self, state: DinoState, task: Task) -> Float[Tensor, ""]:
        """Cross-entropy of the student to the centred, sharpened teacher, averaged over pairs of different views and images."""
        target_VBP = ((task.target.outputs - self.teacher.centre) / self.config.teacher_temperature).softmax(-1)
        student, local = ((z / self.config.student_temperature).log_softmax(-1) for z in (state.student, state.local))
        pairs = [(target_VBP[t], student[s]) for t, s in itertools.permutations(range(len(target_VBP)), 2)]
        pairs += itertools.product(target_VBP, local)
        return torch.stack([-(target_BP * p_BP).sum(-1).mean() for target_BP, p_BP in pairs]).mean()

    def follow(self, tasks: Sequence[Task], momentum: float) -> None:
        """Move the teacher one step towards the student, and the centre one step towards the teacher's mean output."""
        super().follow(tasks, momentum)
        if not tasks:
            return
        with torch.no_grad():
            own_P = torch.stack([task.target.outputs.flatten(0, 1).mean(0) for task in tasks]).mean(0)
            (mean_P,) = distributed.all_reduce_mean([own_P])  # all processes have equally many images
            self.teacher.centre.lerp_(mean_P, 1 - self.config.centre_momentum)

    def _project(self, network: Callable[..., Tensor], views_VB3HW: Tensor) -> Float[Tensor, "V B P"]:
        if len(views_VB3HW) == 0:
            return views_VB3HW.new_zeros(0, views_VB3HW.shape[1], self.config.outputs)
        tokens_BTD = network("tokens", views_VB3HW.flatten(0, 1))
        return network("head", self.backbone.summary(tokens_BTD)).unflatten(0, views_VB3HW.shape[:2]).float()
