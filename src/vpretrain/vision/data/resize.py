"""Resize images and label maps without distortion. Shapes: B images, H x W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int]  # height and width


def covering(size: Shape, shape: Shape) -> Shape:
    """Return the smallest size that covers `shape` and has the proportions of `size`, up to rounding."""
    scale = max(wanted / side for side, wanted in zip(size, shape, strict=True))
    height, width = (max(wanted, round(side * scale)) for side, wanted in zip(size, shape, strict=True))
    return height, width


def part(map_BHW: Tensor, shape: Shape, place: float) -> Tensor:
    """Cut a part of `shape` out of images or maps [..., H, W] that cover it: `place`, from 0 to 1, is where on each axis."""
    for axis, side in zip((-2, -1), shape, strict=True):
        map_BHW = map_BHW.narrow(axis, round(place * (map_BHW.shape[axis] - side)), side)
    return map_BHW


def resize(image_B3HW: Tensor, shape: Shape) -> Tensor:
    """Resize uint8 images to a height and width."""
    if image_B3HW.shape[2:] == shape:
        return image_B3HW
    resized = F.interpolate(image_B3HW.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def nearest(map_BHW: Tensor, shape: Shape) -> Tensor:
    """Resize classes or depths to a height and width, without mixing neighbours."""
    return F.interpolate(map_BHW[:, None].float(), shape, mode="nearest-exact")[:, 0].to(map_BHW.dtype)
