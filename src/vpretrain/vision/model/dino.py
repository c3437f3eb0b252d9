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
from vpretrain.vision.model.learner import VisionLearner


@dataclass(frozen=True)
class DinoState:
    """The outputs of student and teacher for a batch of views.

    Attributes:
        student: head outputs of the global views [Vg, B, P] and of the local ones [Vl, B, P].
        teacher: the teacher's outputs of the global views, without gradient.
    """

    student: tuple[Float[Tensor, "Vg B P"], Float[Tensor, "Vl B P"]]
    teacher: Float[Tensor, "Vg B P"]

    def detach(self) -> DinoState:
        """Return the state without gradient."""
        return DinoState((self.student[0].detach(), self.student[1].detach()), self.teacher.detach())


class DinoHead(nn.Module):
    """DINO's projection head: three layers, a normalised bottleneck, a last layer with weights of norm 1."""

    def __init__(self, width: int, config: DinoConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)  # not DINO's 0.02: so that outputs differ from the start
                nn.init.zeros_(layer.bias)
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
                student = [
                    self._project(self.theta.forward, views) for views in (inputs.global_VB3HW, inputs.local_VB3HW)
                ]
                return DinoState((student[0], student[1]), self.teach(inputs))
        assert len(inputs.local_VB3HW) == 0, "meta steps leave local crops out (see ViewBatch.restrict)"
        inputs = inputs if inputs.prepared else self.prepare(inputs, parameters)
        summary = self.backbone.summary(self.tokens(inputs, parameters))
        student_VBP = self.call(parameters)("head", summary).unflatten(0, inputs.global_VB3HW.shape[:2])
        return DinoState((student_VBP, student_VBP[:0].detach()), inputs.prepared[2])

    def loss(self, state: DinoState, task: Task) -> Float[Tensor, ""]:
        """Cross-entropy of the student to the centred, sharpened teacher, averaged over pairs of different views and images."""
        target_VBP = ((task.target.outputs - self.teacher.centre) / self.config.teacher_temperature).softmax(-1)
        scaled = [s / self.config.student_temperature for s in state.student]
        log_p = [z.log_softmax(-1) for z in scaled]
        terms = [
            -(target_VBP[t] * log_p[0][s]).sum(-1).mean()
            for t, s in itertools.product(range(len(target_VBP)), range(len(log_p[0])))
            if t != s
        ]
        terms += [-(target_BP * p_BP).sum(-1).mean() for target_BP, p_BP in itertools.product(target_VBP, log_p[1])]
        return torch.stack(terms).mean()

    def follow(self, tasks: Sequence[Task], momentum: float) -> None:
        """Move the teacher one step towards the student, and the centre one step towards the teacher's mean output."""
        super().follow(tasks, momentum)
        if not tasks:
            return
        with torch.no_grad():
            own_P = torch.stack([task.target.outputs.flatten(0, 1).mean(0) for task in tasks]).mean(0)
            (mean_P,) = distributed.all_reduce_mean([own_P])  # all processes have equally many images
            self.teacher.centre.lerp_(mean_P, 1 - self.config.centre_momentum)

    def _project(
        self, network: Callable[..., Tensor], views_VB3HW: Float[Tensor, "V B 3 H W"]
    ) -> Float[Tensor, "V B P"]:
        if len(views_VB3HW) == 0:
            return views_VB3HW.new_zeros(0, views_VB3HW.shape[1], self.config.outputs)
        tokens_BTD = network("tokens", views_VB3HW.flatten(0, 1))
        return network("head", self.backbone.summary(tokens_BTD)).unflatten(0, views_VB3HW.shape[:2]).float()
