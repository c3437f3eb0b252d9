"""DINO: student and teacher match across views.

Shapes: V views of the teacher, S views of the student, B images, T tokens, P outputs of the head, D the backbone's width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.method.last_mlp import MLPEntry
from vpretrain.method.protocols import Parameters, Task
from vpretrain.timing import phase
from vpretrain.vision.config import DinoConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.learner import ViewState, VisionLearner


@dataclass(frozen=True)
class DinoState(ViewState):
    """The outputs of student and teacher.

    Attributes:
        local: the student's head outputs of the local views; none in a pass that leaves them out.
        local_views: the number of local views that belong to the loss.
    """

    local: Float[Tensor, "V B P"]
    local_views: int

    @property
    def outputs_SBP(self) -> Float[Tensor, "S B P"]:
        """The outputs of all the student's views, the global ones first."""
        return torch.cat([self.student, self.local])


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
                student_VBP, *entries = self._recorded(self.theta.forward, inputs.global_VB3HW)
                local_VBP, *of_local = self._recorded(self.theta.forward, inputs.local_VB3HW)
                entry = MLPEntry.joined([*entries, *of_local]) if entries else None
                return DinoState(student_VBP, self.teach(inputs), entry, local_VBP, inputs.local_views)
        tokens_BTD, taught_VBP = self.tokens(inputs, parameters)
        entries = [] if self.entry is None else [self.entry]
        outputs = self.theta.forward_with(parameters, "head", self.backbone.summary(tokens_BTD))
        student_VBP = outputs.unflatten(0, inputs.global_VB3HW.shape[:2])
        local_VBP, *of_local = self._recorded(partial(self.theta.forward_with, parameters), inputs.local_VB3HW)
        entry = MLPEntry.joined([*entries, *of_local]) if entries else None
        return DinoState(student_VBP, taught_VBP, entry, local_VBP, inputs.local_views)

    def varying(self, inputs: ViewBatch) -> ViewBatch:
        """Return the inputs without the local crops: no designer changes them, and the targets are constant in phi."""
        return inputs.without_local()

    def loss(self, state: DinoState, task: Task) -> Float[Tensor, ""]:
        """Cross-entropy of the student to the centred, sharpened teacher, averaged over images and over all pairs of different
        views (Eq 50): pairs whose local view the pass has left out count as 0."""
        tilted_VBP = task.target.tilted_VBP
        target_VBP = self.log_targets(task.target.outputs).exp() if tilted_VBP is None else tilted_VBP
        student, local = ((z / self.config.student_temperature).log_softmax(-1) for z in (state.student, state.local))
        pairs = [(target_VBP[t], student[s]) for t, s in itertools.permutations(range(len(target_VBP)), 2)]
        pairs += itertools.product(target_VBP, local)
        count = len(target_VBP) * (len(target_VBP) - 1 + state.local_views)
        return torch.stack([-(target_BP * p_BP).sum(-1).mean() for target_BP, p_BP in pairs]).sum() / count

    def log_targets(self, taught_VBP: Float[Tensor, "V B P"]) -> Float[Tensor, "V B P"]:
        """Return the logarithm of the centred, sharpened teacher's distribution over prototypes: DINO's own targets."""
        return ((taught_VBP - self.teacher.centre) / self.config.teacher_temperature).log_softmax(-1)

    def following(self) -> Sequence[nn.Module]:
        """Return final norm and head, which see the class token alone; UserError if there is none."""
        if not self.backbone.prefix:
            raise UserError("without a class token DINO's head sees the mean of all tokens")
        return (self.backbone.norm, self.module.head)

    def entering(self, images: int, tokens: int) -> Bool[Tensor, "B T"]:
        """Return the class tokens."""
        at_BT = super().entering(images, tokens)
        at_BT[:, 1:] = False
        return at_BT

    def tangents(self, inputs: ViewBatch, state: DinoState, direction: Parameters) -> Float[Tensor, "V B P"]:
        """Return, for every target, the mean of D_u z / student temperature over the student's views that it is matched with.

        z are the head's outputs. Where S is the last MLP the tangent starts from the state's `entry`, else the blocks run
        again.
        """
        if state.entry is not None and self.last_mlp is not None and direction.keys() <= self.last_mlp.names:
            with phase("tangent"), self.autocast():
                theta: Parameters = dict(self.module.named_parameters())
                _, tangent_NP = self.last_mlp.linearised(state.entry, theta, direction)
            tangent_SBP = tangent_NP.float().unflatten(0, (-1, state.student.shape[1]))
        else:
            at = {name: p.detach() for name, p in self.named_parameters() if name in direction}
            along = {name: direction[name] for name in at}
            with phase("tangent"), self.meta_mode(), self.without_fused_kernels():
                tangent_SBP = torch.func.jvp(lambda at: self.forward(inputs, at).outputs_SBP, (at,), (along,))[1]
        tangent_SBP = tangent_SBP.detach() / self.config.student_temperature
        others_VBP = tangent_SBP.sum(0) - tangent_SBP[: len(state.teacher)]  # a view is not matched with itself
        return others_VBP / (len(tangent_SBP) - 1)

    def follow(self, tasks: Sequence[Task], momentum: float) -> None:
        """Move the teacher one step towards the student, and the centre one step towards the teacher's mean output."""
        super().follow(tasks, momentum)
        if not tasks:
            return
        with torch.no_grad():
            own_P = torch.stack([task.target.outputs.flatten(0, 1).mean(0) for task in tasks]).mean(0)
            (mean_P,) = distributed.all_reduce_mean([own_P])  # all processes have equally many images
            self.teacher.centre.lerp_(mean_P, 1 - self.config.centre_momentum)

    def _sample(self, theta: Parameters) -> Float[Tensor, "1 T P"]:
        outputs: Tensor = functional_call(self.module, theta, ("head", super()._sample(theta)))
        return outputs

    def _recorded(self, network: Callable[..., Tensor], views_VB3HW: Tensor) -> tuple[Tensor, *tuple[MLPEntry, ...]]:
        """Return the outputs of some views, and the entry of their pass if there are any and entries are kept."""
        views, images, _, height, width = views_VB3HW.shape
        tokens = self.backbone.prefix + math.prod(self.backbone.patches(height, width))
        with self.recording(self.entering(views * images, tokens)):
            outputs_VBP = self._project(network, views_VB3HW)
        entry = self.entry if views else None
        return (outputs_VBP,) if entry is None else (outputs_VBP, entry)

    def _project(self, network: Callable[..., Tensor], views_VB3HW: Tensor) -> Float[Tensor, "V B P"]:
        if len(views_VB3HW) == 0:
            return views_VB3HW.new_zeros(0, views_VB3HW.shape[1], self.config.outputs)
        tokens_BTD = network("tokens", views_VB3HW.flatten(0, 1))
        return network("head", self.backbone.summary(tokens_BTD)).unflatten(0, views_VB3HW.shape[:2]).float()
