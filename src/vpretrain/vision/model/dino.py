"""DINO: student and teacher match across views; with iBOT's loss also at patches that are hidden from the student, or, where
none is hidden, at all patches. A task may also move the student's patch features.

Shapes: V views of the teacher, S views of the student, B images, T tokens, L patches, M of them with targets of the teacher,
N = 1 + M outputs of a global view (of its class token and of these patches), P outputs of the head, D the backbone's width.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain import distributed
from vpretrain.method.protocols import Parameters, Task
from vpretrain.vision.config import DinoConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.learner import ViewState, VisionLearner

Network = Callable[..., Tensor]  # the student's or the teacher's parts, by name


@dataclass(frozen=True)
class DinoState(ViewState):
    """The outputs of student and teacher.

    Attributes:
        features: the student's normalised patch tokens of the global views; targets of the exact task move the first view's.
        local: the student's head outputs of the local views; none in a pass that leaves them out.
        local_views: the number of local views that belong to the loss.
    """

    features: Float[Tensor, "V B L D"]
    local: Float[Tensor, "V B P"]
    local_views: int


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

    def forward(self, feature_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        """Return outputs in [-1, 1]: cosines with the prototypes."""
        return F.linear(F.normalize(self.mlp(feature_BD), dim=-1, eps=1e-6), F.normalize(self.last, dim=-1))


class DinoLearner(VisionLearner):
    """A vision transformer under DINO's objective; `kwargs` are bf16 and parallel, see `VisionLearner`."""

    config: DinoConfig

    def __init__(self, backbone: Backbone, config: DinoConfig, **kwargs: Any) -> None:
        head = DinoHead(backbone.width, config)
        super().__init__(backbone, head, config, outputs=config.outputs, **kwargs)

    def target_patches(self, inputs: ViewBatch) -> Int[Tensor, "VB M"]:
        """Return the numbers of the patches with targets in each global view, ascending: those hidden from the student, or all
        if none is hidden.

        Hidden patches follow from the batch's seed and an image's place in the whole micro-batch. They are drawn one by one,
        equally many in every crop; iBOT as published hides blocks, 10 to 50 % of a crop, and none in half of the crops.
        """
        views, _, _, height, width = inputs.global_VB3HW.shape
        patches = math.prod(self.backbone.patches(height, width))
        drawn = _draw(inputs.seed, views * inputs.whole, patches, target_patch_count(self.config, patches))
        return drawn[inputs.places_VB].to(inputs.global_VB3HW.device)

    def seen(self, inputs: ViewBatch, stop: int) -> tuple[Tensor, int, None, Tensor | None]:
        """Return all global views with all their tokens, and which patches are hidden."""
        hidden_BN = self._target_mask(inputs) if self.config.hidden_patches else None
        return (inputs.global_VB3HW.flatten(0, 1), stop, None, hidden_BN)

    def teach(self, inputs: ViewBatch) -> Float[Tensor, "V B N P"]:
        """Return the teacher's outputs for the same global views as the student's, learned or not, with no patch hidden."""
        with torch.no_grad():
            return self._of_global(self.teacher, inputs, self.teacher("tokens", inputs.global_VB3HW.flatten(0, 1)))

    def forward(self, inputs: ViewBatch, parameters: Parameters | None = None) -> DinoState:
        """Run student and teacher on the views; `parameters` (of S) replace the student's, and then no others get gradients."""
        if parameters is None:
            with self.autocast():
                images_B3HW, _, _, hidden_BN = self.seen(inputs, 0)
                tokens = self.backbone.prefix + math.prod(self.backbone.patches(*images_B3HW.shape[2:]))
                with self.recording(self.every_token(len(images_B3HW), tokens)):
                    tokens_BTD = self.theta.forward("tokens", images_B3HW, hidden_BN)
                return self._state(self.theta.forward, inputs, tokens_BTD, self.teach(inputs))
        tokens_BTD, taught_VBNP = self.tokens(inputs, parameters)
        return self._state(partial(self.theta.forward_with, parameters), inputs, tokens_BTD, taught_VBNP)

    def varying(self, inputs: ViewBatch) -> ViewBatch:
        """Return the inputs without the local crops: no designer changes them, and the targets are constant in phi."""
        return inputs.without_local()

    def loss(self, state: DinoState, task: Task) -> Float[Tensor, ""]:
        """Cross-entropy of the student to the centred, sharpened teacher, averaged over images and over all pairs of different
        views (Eq 50): pairs whose local view the pass has left out count as 0. The patch loss is added: the student's output at
        a patch is matched with the teacher's at the same patch of the same view. If the task moves features, their divergence
        from where they are to be is added, see `vision.task.construction.MovedFeatures`."""
        target_VBNP = self.log_targets(task.target.outputs).exp()
        student, local = ((z / self.config.student_temperature).log_softmax(-1) for z in (state.student, state.local))
        of_class, views = target_VBNP[:, :, 0], range(len(target_VBNP))
        pairs = [(of_class[t], student[s, :, 0]) for t, s in itertools.permutations(views, 2)]
        pairs += itertools.product(of_class, local)
        count = len(views) * (len(views) - 1 + state.local_views)
        loss = torch.stack([-(target_BP * p_BP).sum(-1).mean() for target_BP, p_BP in pairs]).sum() / count
        if self.config.patch_loss:
            loss = loss - self.config.patch_loss * (target_VBNP[:, :, 1:] * student[:, :, 1:]).sum(-1).mean()
        if (moved := task.target.moved) is not None:
            features_1BLD = state.features[:1]
            loss = loss + (features_1BLD - moved.features).square().sum(-1).mean() / (2 * moved.variance)
        return loss

    def log_targets(self, taught_VBNP: Float[Tensor, "V B N P"]) -> Float[Tensor, "V B N P"]:
        """Return the logarithm of the centred, sharpened teacher's distribution over prototypes: DINO's own targets."""
        centre, of_patches = self.teacher.centre[None], self.teacher.patch_centre.expand(taught_VBNP.shape[2] - 1, -1)
        centre_NP = torch.cat([centre, of_patches])
        return ((taught_VBNP - centre_NP) / self.config.teacher_temperature).log_softmax(-1)

    def tangents(self, inputs: ViewBatch, state: DinoState, direction: Parameters) -> Float[Tensor, "1 B L D"]:
        """Return D_u of the student's patch features of the first global view.

        Where S is the last MLP or some of the last blocks the tangent starts from the state's `entry`, else all blocks run
        again.
        """
        views, images = state.features.shape[:2]
        entry = None if state.entry is None else state.entry.rows(slice(0, 1), views)
        with self.autocast():
            found = self.tokens_and_tangents(entry, direction, images)
        if found is None:
            pixels_VB3HW, _, _, hidden_VBN = self.seen(inputs, 0)
            first = (pixels_VB3HW[:images], None if hidden_VBN is None else hidden_VBN[:images])
            found = self.tangent_pass(lambda theta_S: self.theta.forward_with(theta_S, "tokens", *first), direction)
        return self._patches(found[1].detach(), 1)

    def follow(self, tasks: Sequence[Task], momentum: float) -> None:
        """Move the teacher one step towards the student, and the centres one step towards the teacher's mean outputs."""
        super().follow(tasks, momentum)
        if not tasks:
            return
        with torch.no_grad():
            own_NP = torch.stack([task.target.outputs.flatten(0, 1).mean(0) for task in tasks]).mean(0)
            (mean_NP,) = distributed.all_reduce_mean([own_NP])  # all processes have equally many images
            self.teacher.centre.lerp_(mean_NP[0], 1 - self.config.centre_momentum)
            if len(mean_NP) > 1:
                self.teacher.patch_centre.lerp_(mean_NP[1:].mean(0), 1 - self.config.centre_momentum)

    def features_of(self, tokens_BTD: Float[Tensor, "VB T D"], inputs: ViewBatch) -> Float[Tensor, "VB N D"]:
        """Return what the head gets of global views: summaries, and the tokens of the patches with targets."""
        at_BMD = self.target_patches(inputs)[:, :, None].expand(-1, -1, tokens_BTD.shape[2])
        patches_BMD = tokens_BTD[:, self.backbone.prefix :].gather(1, at_BMD)
        return torch.cat([self.backbone.summary(tokens_BTD)[:, None], patches_BMD], dim=1)

    def _state(self, network: Network, inputs: ViewBatch, tokens_BTD: Tensor, taught_VBNP: Tensor) -> DinoState:
        """Complete a pass whose tokens of the global views are given, and were recorded if entries are kept."""
        entry = self.entry_of_pass()
        student_VBNP = self._of_global(network, inputs, tokens_BTD)
        views, images = inputs.local_VB3HW.shape[:2]
        local_VBP = student_VBNP.new_zeros(0, images, self.config.outputs)
        if views:
            local_BTD = network("tokens", inputs.local_VB3HW.flatten(0, 1))
            local_VBP = _fp32(network("head", self.backbone.summary(local_BTD))).unflatten(0, (views, images))
        features_VBLD = self._patches(tokens_BTD, len(inputs.global_VB3HW))
        return DinoState(student_VBNP, taught_VBNP, entry, features_VBLD, local_VBP, inputs.local_views)

    def _patches(self, tokens_BTD: Float[Tensor, "VB T D"], views: int) -> Float[Tensor, "V B L D"]:
        return _fp32(tokens_BTD[:, self.backbone.prefix :]).unflatten(0, (views, -1))

    def _of_global(self, network: Network, inputs: ViewBatch, tokens_BTD: Tensor) -> Float[Tensor, "V B N P"]:
        feature_BND = self.features_of(tokens_BTD, inputs)
        outputs = _fp32(network("head", feature_BND.flatten(0, 1)))
        return outputs.unflatten(0, (*inputs.global_VB3HW.shape[:2], feature_BND.shape[1]))

    def _target_mask(self, inputs: ViewBatch) -> Bool[Tensor, "VB N"] | None:
        """Return which patches of the global views have targets; None if none has."""
        at_BM = self.target_patches(inputs)
        if at_BM.shape[1] == 0:
            return None
        height, width = self.backbone.patches(*inputs.global_VB3HW.shape[3:])
        return torch.zeros(len(at_BM), height * width, dtype=torch.bool, device=at_BM.device).scatter(1, at_BM, True)


def target_patch_count(config: DinoConfig, patches: int) -> int:
    """Return how many of a global view's patches have targets: the hidden ones, all if none is hidden, none without a patch
    loss."""
    if not config.patch_loss:
        return 0
    return max(1, round(config.hidden_patches * patches)) if config.hidden_patches else patches


@functools.lru_cache(maxsize=8)
def _draw(seed: int, images: int, patches: int, count: int) -> Int[Tensor, "B M"]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/hidden".encode()))
    return torch.rand(images, patches, generator=generator).argsort(1)[:, :count].sort(1).values


def _fp32(outputs: Tensor) -> Tensor:
    """Return bf16 outputs as fp32."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
