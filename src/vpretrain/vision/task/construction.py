"""Vision constructions: the exact task, learned views, and the controls, which differ from them in this file only.

Shapes: V views, B images, N outputs of a view (I-JEPA: M target blocks of N patches), P prototypes, D width, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain import distributed
from vpretrain.method.base_construction import BaseConstruction
from vpretrain.method.protocols import AnyState, Parameters, Targets, Task, with_tensors
from vpretrain.method.strength import Strength
from vpretrain.vision.config import DesignerConfig, ValueConfig
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.learner import VisionLearner


@dataclass(frozen=True)
class TeacherTarget:
    """The teacher's target, and with it, under DINO, where the exact task moves the student's own features.

    Attributes:
        outputs: DINO's raw outputs on the global views [V, B, N, P], not yet centred; I-JEPA's of the target patches.
        moved: DINO: where the student's patch features are to be; None: they have no target.
    """

    outputs: Tensor
    moved: MovedTarget | None = None

    def detach(self) -> TeacherTarget:
        """Return the target detached: a teacher's outputs never carry a gradient, but the firewall requires it."""
        return TeacherTarget(self.outputs.detach(), None if self.moved is None else self.moved.detach())


@dataclass(frozen=True)
class MovedTarget:
    """A Gaussian target for the features of each patch of the first global view.

    Attributes:
        features: its mean.
        variance: per element.
    """

    features: Float[Tensor, "1 B L D"]
    variance: Float[Tensor, ""]

    def detach(self) -> MovedTarget:
        """Return the target detached."""
        return with_tensors(self, Tensor.detach)


@dataclass(frozen=True)
class TaskParts:
    """The parts that an arm's construction is built from.

    Attributes:
        learner: theta.
        value, designer_config: the sections of the recipe.
        strength: for arms whose targets are the exact task.
        designer: for arms that train one.
        direction: gives u; None before the first meta update.
    """

    learner: VisionLearner
    value: ValueConfig
    designer_config: DesignerConfig
    strength: Strength | None
    designer: nn.Module | None
    direction: Callable[[], Parameters | None]


class Fixed(BaseConstruction):
    """The usual DINO views: the base task."""

    blur = 0.0  # standard deviation of the blur behind a mask, as a fraction of a side

    @classmethod
    def of(cls, parts: TaskParts) -> Fixed:
        """Build the construction of an arm."""
        return cls()

    def mask(self, batch: ViewBatch) -> Float[Tensor, "V B 1 H W"] | None:
        """Return the mask mu of the global crops; None leaves them unchanged."""
        return None

    def inputs(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch with masked global crops and unchanged local crops."""
        mask_VB1HW = self.mask(batch)
        if mask_VB1HW is None:
            return batch
        views = masked(batch.global_VB3HW, mask_VB1HW, self.blur)
        return replace(batch, global_VB3HW=views, mask_VB1HW=mask_VB1HW, unmasked_VB3HW=batch.global_VB3HW)

    def targets(self, inputs: ViewBatch, state: AnyState) -> Task:
        """Return the task, with the teacher's outputs as target.

        DINO's teacher sees the designed views too, I-JEPA's the unmasked crops.
        """
        mask, views = inputs.mask_VB1HW, inputs.global_VB3HW
        side = {"mask_B": views.new_ones(views.shape[1])}  # for unmasked views
        if mask is not None:
            side = {"mask_VB1HW": mask, "mask_B": mask.mean((0, 2, 3, 4))}
        return Task(inputs, TeacherTarget(state.teacher), side)


class ExactTask(Fixed):
    """V's optimum inside a trust region, in closed form (METHODS: the exact task): targets moved along u.

    The strength beta is the fraction of the way that they move; at beta = 0 and before the first meta update the task is the
    base task.

    Args:
        learner: gives the tangents of the outputs along u.
        divergence: nats per patch (I-JEPA: per element), at radius 1.
        strength: gives beta, and the radius.
        direction: gives u.
    """

    @classmethod
    def of(cls, parts: TaskParts) -> Fixed:
        assert parts.strength is not None
        kind = MovedFeatures if isinstance(parts.learner, DinoLearner) else MovedRepresentations
        return kind(parts.learner, parts.value.divergence, parts.strength, parts.direction)

    def __init__(
        self,
        learner: VisionLearner,
        divergence: float,
        strength: Strength,
        direction: Callable[[], Parameters | None],
    ) -> None:
        self.learner, self.divergence, self.strength, self.direction = learner, divergence, strength, direction

    def targets(self, inputs: ViewBatch, state: AnyState) -> Task:
        """Return the tilted task, mixed with the base task."""
        return self.at_beta(inputs, state, self.strength.beta)

    def ends(self) -> tuple[Targets, Targets]:
        """Return the targets at beta = 0 and at beta = 1, which a judgement compares."""
        return partial(self.at_beta, beta=0.0), partial(self.at_beta, beta=1.0)

    def at_beta(self, inputs: ViewBatch, state: AnyState, beta: float) -> Task:
        """Return the targets at this beta."""
        base = super().targets(inputs, state)
        u = self.direction() if beta else None
        if u is None:
            tilt_B = torch.zeros_like(base.side["mask_B"])
            return Task(inputs, base.target, {"tilt_B": tilt_B})
        with torch.no_grad():
            tangents = self.learner.tangents(inputs, state, u)
            target, tilt_B = self.moved(state, tangents, beta)
        return Task(inputs, target, {"tilt_B": tilt_B})

    def moved(self, state: AnyState, tangents: Tensor, beta: float) -> tuple[TeacherTarget, Float[Tensor, " B"]]:
        """Return the target at this beta, and the mean distance that it has moved, in standard deviations, by image."""
        raise NotImplementedError


class MovedFeatures(ExactTask):
    """DINO: beside the base task each patch of the first global view has a Gaussian target, whose mean moves away from the
    student's own features h, h*_i = h_i - s D_u h_i. Its variance per element is the mean square of h, and its divergence from
    the one around h is |h* - h|^2 / (2 variance).

    The views of an image are alike, and a tangent of both costs twice as much. At beta = 0 this target is where the student is,
    and gives no gradient. DINO's own targets pass on little of u: see docs/decisions.md.
    """

    def moved(self, state: AnyState, tangents: Tensor, beta: float) -> tuple[TeacherTarget, Float[Tensor, " B"]]:
        """Return the target at this beta, and the mean distance that it has moved, in standard deviations, by image."""
        features_1BLD = state.features[:1]
        square, variance = _mean_squares(tangents, features_1BLD)
        reach = beta * math.sqrt(2 * self.strength.radius * self.divergence / tangents.shape[-1])  # per element
        way = -reach * tangents / square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)
        moved = MovedTarget(features_1BLD + way * variance.sqrt(), variance)
        return TeacherTarget(state.teacher, moved), way.abs().mean((0, 2, 3))


class MovedRepresentations(ExactTask):
    """I-JEPA: t*_i = t_i - s D_u z_i, z the prediction: the same law for a Gaussian of variance 1 per element around the
    teacher's representation, whose divergence from t* is (t* - t)^2 / 2; at strength beta t moves by a fraction beta of it."""

    def moved(self, state: AnyState, tangents: Tensor, beta: float) -> tuple[TeacherTarget, Float[Tensor, " B"]]:
        """Return the target at this beta, and the mean distance that it has moved, by image."""
        (square,) = _mean_squares(tangents)
        reach = math.sqrt(2 * self.strength.radius * self.divergence)
        moved = -beta * reach * tangents / square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)
        return TeacherTarget(state.teacher + moved), moved.abs().flatten(1).mean(1)


def _mean_squares(*parts: Tensor) -> list[Float[Tensor, ""]]:
    """Return the mean square of each tensor over all processes, of which some may have an image more."""
    sums = torch.stack([torch.stack([x.square().sum(), x.new_full((), x.numel())]) for x in parts])
    (sums,) = distributed.all_reduce_mean([sums])
    return list(sums[:, 0] / sums[:, 1])


class LearnedViews(Fixed):
    """V-pretraining's construction: v~ = mu v + (1 - mu) Blur(v), mu from the designer (Eq 49).

    Args:
        designer: phi.
        config: the regularisers' weights and the blur.
    """

    designer: nn.Module

    @classmethod
    def of(cls, parts: TaskParts) -> Fixed:
        assert parts.designer is not None
        return cls(parts.designer, parts.designer_config)

    def __init__(self, designer: nn.Module, config: DesignerConfig) -> None:
        self.designer, self.config, self.blur = designer, config, config.blur

    def mask(self, batch: ViewBatch) -> Float[Tensor, "V B 1 H W"]:
        """Return the designer's mask, with a graph to phi unless under no_grad."""
        views = batch.global_VB3HW
        return self.designer(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def regulariser(self, task: Task) -> Tensor:
        """Sparsity, which holds the mask's mean near the keep ratio, and total variation, across and down (Eq 54)."""
        mask = task.side["mask_VB1HW"]
        sparsity = (mask.mean((2, 3, 4)) - self.config.keep).square().mean()
        variation = mask.diff(dim=-2).abs().mean() + mask.diff(dim=-1).abs().mean()
        return self.config.sparsity * sparsity + self.config.smoothness * variation


class RandomMask(Fixed):
    """Smooth random masks with the designer's target keep ratio: masks without feedback."""

    @classmethod
    def of(cls, parts: TaskParts) -> Fixed:
        return cls(parts.designer_config)

    def __init__(self, config: DesignerConfig) -> None:
        self.config, self.blur = config, config.blur

    def mask(self, batch: ViewBatch) -> Float[Tensor, "V B 1 H W"]:
        """Threshold smooth noise so that the wanted fraction is kept; drawn for every batch from its seed."""
        views = batch.global_VB3HW
        generator = torch.Generator().manual_seed(batch.seed)
        coarse = torch.randn(views.shape[0] * batch.whole, 1, 7, 7, generator=generator)
        noise = F.interpolate(coarse[batch.places_VB].to(views), views.shape[3:], mode="bicubic", align_corners=False)
        scores = 4 * noise
        return (scores - _threshold(scores, self.config.keep)).sigmoid().unflatten(0, views.shape[:2])


def _threshold(scores_N1HW: Tensor, keep: float) -> Float[Tensor, "N 1 1 1"]:
    """Find the threshold at which the mean of sigmoid(score - threshold) is `keep`, by bisection on a part of the pixels."""
    stride = max(1, scores_N1HW.shape[-1] // 56)
    part, keep = scores_N1HW[..., ::stride, ::stride], min(max(keep, 0.001), 0.999)
    odds = math.log(keep / (1 - keep))
    low, high = (extreme((1, 2, 3), keepdim=True) - odds for extreme in (part.amin, part.amax))
    for _ in range(20):
        middle = (low + high) / 2
        above = (part - middle).sigmoid().mean((1, 2, 3), keepdim=True) > keep
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def masked(
    view_VB3HW: Float[Tensor, "V B 3 H W"], mask_VB1HW: Float[Tensor, "V B 1 H W"], blur: float
) -> Float[Tensor, "V B 3 H W"]:
    """Return v~ = mu v + (1 - mu) Blur(v) (Eq 49); with mu = 1 the view itself, bit for bit."""
    from kornia.filters import gaussian_blur2d

    sigma = blur * view_VB3HW.shape[-1]
    reach = 2 * round(2 * sigma) + 1
    blurred = gaussian_blur2d(view_VB3HW.flatten(0, 1), (reach, reach), (sigma, sigma))
    return mask_VB1HW * view_VB3HW + (1 - mask_VB1HW) * blurred.unflatten(0, view_VB3HW.shape[:2])
