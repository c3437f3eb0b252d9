"""Pictures and label maps at the size that a backbone sees. Shapes: B pictures, H x W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize(image_B3HW: Tensor, size: int) -> Tensor:
    """uint8 pictures at `size` pixels a side."""
    if image_B3HW.shape[2:] == (size, size):
        return image_B3HW
    resized = F.interpolate(image_B3HW.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def nearest(map_BHW: Tensor, size: int) -> Tensor:
    """Classes or depths at `size` pixels a side, without mixing neighbours."""
    return F.interpolate(map_BHW[:, None].float(), (size, size), mode="nearest")[:, 0]
