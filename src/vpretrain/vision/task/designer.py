"""The task designer of vision: a mask, per pixel or per patch, of how much of a global crop stays sharp.

Shapes: B images, H x W pixels, h x w patches, D width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.vision.config import DesignerConfig
from vpretrain.vision.model.backbone import plain_blocks, positions


class UNetMask(nn.Module):
    """A U-Net for the mask mu_phi(v) in [0, 1] of a crop v. Starts at `config.start` everywhere: near a no-op. Always fp32."""

    def __init__(self, config: DesignerConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(config.levels + 1)]
        self.down = nn.ModuleList(_block(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_block(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], 1, 1)
        _start_at(self.out, config.start)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # few channels of many pixels: the faster layout on a CPU

    def forward(self, crop_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Return the mask of crops in [0, 1], whose sides need not be powers of two."""
        x, kept = crop_B3HW.contiguous(memory_format=torch.channels_last) - 0.5, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2, ceil_mode=True))
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], dim=1))
        return self.out(x).sigmoid()


class PatchMask(nn.Module):
    """The same mask by a small transformer: one value per patch, interpolated between patches. Always fp32."""

    def __init__(self, config: DesignerConfig) -> None:
        super().__init__()
        width = 12 * config.width
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.blocks = plain_blocks(config.layers, width, heads=4)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)
        _start_at(self.out, config.start)

    def forward(self, crop_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Return the mask of crops in [0, 1], whose sides are multiples of the patch."""
        grid_BDhw = self.patches(crop_B3HW - 0.5)
        _, width, height, across = grid_BDhw.shape
        tokens_BTD = grid_BDhw.flatten(2).transpose(1, 2) + positions(height, across, width).to(grid_BDhw)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD)
        scores_B1hw = self.out(self.norm(tokens_BTD)).transpose(1, 2).unflatten(2, grid_BDhw.shape[2:])
        return F.interpolate(scores_B1hw, crop_B3HW.shape[2:], mode="bilinear", align_corners=False).sigmoid()


def make_designer(config: DesignerConfig) -> nn.Module:
    """Build the designer that a recipe names."""
    return PatchMask(config) if config.kind == "dit" else UNetMask(config)


def _start_at(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, math.log(value / (1 - value)))


def _block(inputs: int, outputs: int) -> nn.Module:
    groups = math.gcd(8, outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU())
