"""I-JEPA: predict the representations of some patches of an image from others. Shapes: V views, B images, D width,
M target blocks per image, C context patches, N patches per target block.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.errors import UserError
from vpretrain.method.protocols import Parameters, Task, with_tensors
from vpretrain.timing import phase
from vpretrain.vision.config import IJepaConfig
from vpretrain.vision.model.backbone import Backbone, plain_blocks, positions
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.learner import ViewState, VisionLearner


@dataclass(frozen=True)
class Blocks:
    """The context patches and the target patches, numbered row by row.

    Attributes:
        context_BC: context patches, none of them in a target block.
        target_BMN: patches of M blocks of one shape, anywhere.
    """

    context_BC: Int[Tensor, "B C"]
    target_BMN: Int[Tensor, "B M N"]


class Predictor(nn.Module):
    """A narrow transformer over context tokens and, for a target block, mask tokens with the positions of its patches."""

    def __init__(self, width: int, config: IJepaConfig) -> None:
        super().__init__()
        narrow = config.predictor_width
        self.inward = nn.Linear(width, narrow)
        self.mask = nn.Parameter(torch.zeros(narrow))
        self.blocks = plain_blocks(config.predictor_layers, narrow, config.predictor_heads)
        self.norm = nn.LayerNorm(narrow)
        self.outward = nn.Linear(narrow, width)

    def forward(
        self, context_BCD: Float[Tensor, "B C D"], blocks: Blocks, grid: tuple[int, int]
    ) -> Float[Tensor, "B M N D"]:
        """Predict the representations of every target block, each separately from the same context."""
        targets = blocks.target_BMN.shape[1]
        place = positions(*grid, self.mask.shape[0]).to(context_BCD)
        known = (self.inward(context_BCD) + place[blocks.context_BC]).repeat_interleave(targets, dim=0)
        asked = self.mask + place[blocks.target_BMN].flatten(0, 1)
        tokens = torch.cat([known, asked], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        asked = self.outward(self.norm(tokens[:, known.shape[1] :])).unflatten(0, (-1, targets))
        return asked.clone()  # FSDP2 hooks its backward pass to a module's outputs, and warns about views


class IJepaLearner(VisionLearner):
    """A vision transformer under I-JEPA's objective. The designer's view goes to the context encoder only.

    `kwargs` are bf16 and parallel, see `VisionLearner`. Raises UserError if the backbone has rotary positions, so that tokens
    cannot be left out.
    """

    config: IJepaConfig

    def __init__(self, backbone: Backbone, config: IJepaConfig, **kwargs: Any) -> None:
        if backbone.rotary:
            raise UserError(
                "learner.objective=ijepa needs a backbone without rotary positions: an IJepaModel or Dinov2Model"
            )
        super().__init__(backbone, Predictor(backbone.width, config), config, outputs=1, **kwargs)

    def seen(self, inputs: ViewBatch, stop: int) -> tuple[Tensor, int, Tensor]:
        """Return the views, with their context tokens only."""
        prefix = self.backbone.prefix
        context_BC = self._blocks(inputs).context_BC
        first = torch.arange(prefix, device=context_BC.device).expand(len(context_BC), -1)
        return (inputs.global_VB3HW.flatten(0, 1), stop, torch.cat([first, context_BC + prefix], dim=1))

    def teach(self, inputs: ViewBatch) -> Float[Tensor, "B M N D"]:
        """Return the EMA encoder's normalised representations of the targets, from the whole crops before any mask."""
        blocks = self._blocks(inputs)
        with torch.no_grad():
            tokens_BTD = self.teacher("tokens", inputs.plain_VB3HW.flatten(0, 1)).float()[:, self.backbone.prefix :]
        tokens_BTD = F.layer_norm(tokens_BTD, tokens_BTD.shape[-1:])
        index = blocks.target_BMN.flatten(1)[:, :, None].expand(-1, -1, tokens_BTD.shape[-1])
        return tokens_BTD.gather(1, index).unflatten(1, blocks.target_BMN.shape[1:])

    def forward(self, inputs: ViewBatch, parameters: Parameters | None = None) -> ViewState:
        """Run student and teacher; `parameters` (of S) replace the student's, and then no others get gradients."""
        blocks, grid, prefix = self._blocks(inputs), self._grid(inputs), self.backbone.prefix
        if parameters is None:
            with self.autocast():
                hidden, rope = self.theta.forward("lower", *self.seen(inputs, 0))
                with self.recording(self.every_token(*hidden.shape[:2])):
                    tokens_BTD = self.theta.forward("upper", hidden, rope, 0)
                entry = self.entry_of_pass()
                predicted_BMND = self.theta.forward("head", tokens_BTD[:, prefix:], blocks, grid)
                return ViewState(predicted_BMND.float(), self.teach(inputs), entry)
        tokens_BTD, taught_BMND = self.tokens(inputs, parameters)
        predicted_BMND = self.theta.forward_with(parameters, "head", tokens_BTD[:, prefix:], blocks, grid)
        return ViewState(predicted_BMND, taught_BMND, self.entry_of_pass())

    def tangents(self, inputs: ViewBatch, state: ViewState, direction: Parameters) -> Float[Tensor, "B M N D"]:
        """Return D_u of the predicted representations.

        Where S is the last MLP or some of the last blocks the tangent starts from the state's `entry` and goes on through the
        predictor, else all blocks run again.
        """
        found = self.tokens_and_tangents(state.entry, direction, len(inputs.global_VB3HW.flatten(0, 1)))
        if found is None:
            return self.tangent_pass(lambda theta_S: self.forward(inputs, theta_S).student, direction)[1].detach()
        tokens_BTD, tangent_BTD = (part_BTD.detach()[:, self.backbone.prefix :] for part_BTD in found)
        blocks, grid = self._blocks(inputs), self._grid(inputs)

        def predicted(tokens_BTD: Tensor) -> Tensor:
            return self.theta.forward_with({}, "head", tokens_BTD, blocks, grid)

        with phase("tangent"), self.meta_mode(), self.without_fused_kernels():
            return torch.func.jvp(predicted, (tokens_BTD,), (tangent_BTD,))[1].detach()

    def loss(self, state: ViewState, task: Task) -> Float[Tensor, ""]:
        """Smooth L1 between predicted and true representations, averaged over their elements."""
        return F.smooth_l1_loss(state.student, task.target.outputs)

    def _grid(self, inputs: ViewBatch) -> tuple[int, int]:
        return self.backbone.patches(*inputs.global_VB3HW.shape[3:])

    def _blocks(self, inputs: ViewBatch) -> Blocks:
        images = len(inputs.global_VB3HW) * inputs.whole
        blocks = draw_blocks(self.config, self._grid(inputs), images, seed=inputs.seed)
        return with_tensors(blocks, lambda tensor: tensor[inputs.places_VB].to(self.device))


@functools.lru_cache(maxsize=1)  # called several times per step
def draw_blocks(config: IJepaConfig, grid: tuple[int, int], images: int, *, seed: int) -> Blocks:
    """Draw target blocks of one shape at random places per image, and a large context block without their patches.

    They depend only on the batch's seed, so that all arms see the same. Contexts are cut to the
    size of the smallest in the batch, as in the paper's code.
    """
    generator = torch.Generator().manual_seed(seed)
    target = _shape(grid, config.target_scale, config.target_aspect, generator)
    context = _shape(grid, config.context_scale, (1.0, 1.0), generator)
    number = torch.arange(grid[0] * grid[1]).view(grid)

    def place(shape: tuple[int, int]) -> Tensor:
        top = int(torch.randint(grid[0] - shape[0] + 1, (1,), generator=generator))
        left = int(torch.randint(grid[1] - shape[1] + 1, (1,), generator=generator))
        return number[top : top + shape[0], left : left + shape[1]].flatten()

    targets, contexts = [], []
    for _ in range(images):
        blocks = torch.stack([place(target) for _ in range(config.targets)])
        seen = place(context)
        left = seen[~torch.isin(seen, blocks)]
        free = number.flatten()[~torch.isin(number.flatten(), blocks)]
        contexts.append(left if len(left) else (free if len(free) else seen)[:1])
        targets.append(blocks)
    shortest = min(map(len, contexts))
    kept = [c[torch.randperm(len(c), generator=generator)[:shortest].sort().values] for c in contexts]
    return Blocks(torch.stack(kept), torch.stack(targets))


def _shape(
    grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[int, int]:
    fraction, ratio = (a + (b - a) * float(torch.rand(1, generator=generator)) for a, b in (scale, aspect))
    area = fraction * grid[0] * grid[1]
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, min(grid[0], height)), max(1, min(grid[1], width))
