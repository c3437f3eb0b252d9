"""A vision learner for `vpretrain doctor`: random images, a random designer, a random linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpretrain.inspection.doctor import EngineCase, random_case
from vpretrain.vision.config import DesignerConfig, DinoConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.learner import VisionLearner
from vpretrain.vision.model.load import load_backbone
from vpretrain.vision.task.construction import LearnedViews
from vpretrain.vision.task.designer import UNetMask

PARTS: dict[str, str] = {}  # the mask generators have no separately reported parts
_IMAGES, _PATCHES, _LOCAL = 4, 4, 3
_DESIGNER = DesignerConfig(width=8, levels=2, start=0.6)
_DINO = DinoConfig(outputs=64, hidden=64, bottleneck=32)


class _Judge:
    """A feedback batch: random images, a random target for every patch."""

    entry = None

    def __init__(self, image_B3HW: Tensor, width: int) -> None:
        self.image_B3HW = image_B3HW
        self.direction = torch.randn(width).to(image_B3HW) / width

    def loss(self, grid_BDhw: Tensor) -> Tensor:
        return (torch.einsum("bdhw,d->bhw", grid_BDhw, self.direction) - 1).square().mean()


def engine_case(name: str) -> EngineCase:
    """Build the learner with a batch of views and a feedback gradient over its last two blocks. Raises UserError."""
    backbone = Backbone(load_backbone(name))
    return engine_case_of(DinoLearner(backbone, _DINO), "last-2" if len(backbone.blocks) >= 2 else "last-1")


def engine_case_of(learner: VisionLearner, subset: str) -> EngineCase:
    """Build the same for a given learner."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        size = _PATCHES * learner.backbone.patch_size
        views = torch.rand(2, _IMAGES, 3, size, size, device=learner.device)
        count = _LOCAL if isinstance(learner, DinoLearner) else 0
        local = torch.rand(count, _IMAGES, 3, size // 2, size // 2, device=learner.device)
        judge = _Judge(torch.rand(_IMAGES, 3, size, size, device=learner.device), learner.backbone.width)
        designer = UNetMask(_DESIGNER).to(learner.device)
        nn.init.normal_(designer.out.weight, std=0.5)
    places = tuple(range(_IMAGES))
    batch = ViewBatch(views, local, tuple(map(str, places)), places, _IMAGES, count)
    construction, inputs = LearnedViews(designer, _DESIGNER), f"{_IMAGES} images of {size} pixels"
    return random_case(learner, construction, batch, judge, subset, PARTS, inputs)
