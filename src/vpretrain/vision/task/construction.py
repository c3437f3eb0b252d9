"""Vision constructions: learned views, and the controls, which differ from them in this file only.

Shapes: V views, B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.method.protocols import AnyState, Task
from vpretrain.vision.config import DesignerConfig
from vpretrain.vision.model.batch import ViewBatch


@dataclass(frozen=True)
class TeacherTarget:
    """The teacher's raw outputs: DINO's on the global views [V, B, P], not yet centred; I-JEPA's of target patches."""

    outputs: Tensor

    def detach(self) -> TeacherTarget:
        """Return the target detached: a teacher's outputs never carry a gradient, but the firewall requires it."""
        return TeacherTarget(self.outputs.detach())


class Fixed:
    """The usual DINO views: the base task."""

    blur = 0.0  # standard deviation of the blur behind a mask, as a fraction of a side

    @classmethod
    def of(cls, designer: nn.Module | None, config: DesignerConfig) -> Fixed:
        """Make an arm's construction, with its designer if it has one."""
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

    def regulariser(self, task: Task) -> Tensor:
        """Return 0: there is nothing to regularise."""
        return torch.zeros(())

    def unit(self, surrogate: Tensor, task: Task) -> Tensor | float:
        """Return 1: the value keeps its own unit."""
        return 1.0

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return no parameters."""
        return ()


class LearnedViews(Fixed):
    """V-pretraining's construction: v~ = mu v + (1 - mu) Blur(v), mu from the designer (Eq 49).

    Args:
        designer: phi.
        config: the regularisers' weights and the blur.
    """

    @classmethod
    def of(cls, designer: nn.Module | None, config: DesignerConfig) -> Fixed:
        assert designer is not None
        return cls(designer, config)

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

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return phi."""
        return self.designer.parameters()


class RandomMask(Fixed):
    """Smooth random masks with the designer's target keep ratio: masks without feedback."""

    @classmethod
    def of(cls, designer: nn.Module | None, config: DesignerConfig) -> Fixed:
        return cls(config)

    def __init__(self, config: DesignerConfig) -> None:
        self.config, self.blur = config, config.blur

    def mask(self, batch: ViewBatch) -> Float[Tensor, "V B 1 H W"]:
        """Threshold smooth noise so that the wanted fraction is kept; drawn for every batch from its number."""
        views = batch.global_VB3HW
        generator = torch.Generator().manual_seed(batch.number)
        coarse = torch.randn(views.shape[0] * batch.whole, 1, 7, 7, generator=generator)
        noise = F.interpolate(coarse[batch.places_VB].to(views), views.shape[3:], mode="bicubic", align_corners=False)
        threshold = noise.flatten(1).quantile(1 - self.config.keep, dim=1)[:, None, None, None]
        return ((noise - threshold) * 4).sigmoid().unflatten(0, views.shape[:2])


def masked(
    view_VB3HW: Float[Tensor, "V B 3 H W"], mask_VB1HW: Float[Tensor, "V B 1 H W"], blur: float
) -> Float[Tensor, "V B 3 H W"]:
    """Return v~ = mu v + (1 - mu) Blur(v) (Eq 49); with mu = 1 the view itself, bit for bit."""
    from kornia.filters import gaussian_blur2d

    sigma = blur * view_VB3HW.shape[-1]
    reach = 2 * round(2 * sigma) + 1
    blurred = gaussian_blur2d(view_VB3HW.flatten(0, 1), (reach, reach), (sigma, sigma))
    return mask_VB1HW * view_VB3HW + (1 - mask_VB1HW) * blurred.unflatten(0, view_VB3HW.shape[:2])
