"""Resize images and label maps to the backbone's input size. Shapes: B images, H x W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int]  # height and width


def resize(image_B3HW: Tensor, shape: Shape) -> Tensor:
    """Resize uint8 images to a height and width."""
    if image_B3HW.shape[2:] == shape:
        return image_B3HW
    resized = F.interpolate(image_B3HW.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def nearest(map_BHW: Tensor, shape: Shape) -> Tensor:
    """Resize classes or depths to a height and width, without mixing neighbours."""
    return F.interpolate(map_BHW[:, None].float(), shape, mode="nearest")[:, 0]
