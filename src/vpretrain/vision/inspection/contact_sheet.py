"""A contact sheet: images of each role, with their labels beside them. Shapes: B images, H x W pixels."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vpretrain.vision.data.resize import covering, part, resize
from vpretrain.vision.model.batch import IGNORED, Labelled

SIDE = 192  # pixels of an image, which is scaled and cut to a square
_GOLDEN = 0.618  # whose multiples, modulo 1, are hues that differ
_MIDDLE = 0.5


def contact_sheet(stream: Sequence[Tensor], labelled: Sequence[Labelled]) -> bytes:
    """Return a PNG file with a row per role: images of the stream, then labelled images, each with its labels at its right.

    All of them are squares of SIDE pixels.
    """
    from PIL import Image

    rows = [[square(image_3HW) for image_3HW in stream]]
    rows += [
        [cell for image in (one[i : i + 1] for i in range(len(one))) for cell in _cells(image)] for one in labelled
    ]
    strips = [torch.cat([F.pad(cell, (2, 2, 2, 2), value=255) for cell in row], dim=2) for row in rows]
    width = max(strip.shape[2] for strip in strips)
    sheet_3HW = torch.cat([F.pad(strip, (0, width - strip.shape[2]), value=255) for strip in strips], dim=1)
    file = io.BytesIO()
    Image.fromarray(sheet_3HW.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def square(image_3HW: Tensor) -> Tensor:
    """Return the middle of an image at SIDE x SIDE pixels."""
    shape = (SIDE, SIDE)
    size = covering((image_3HW.shape[1], image_3HW.shape[2]), shape)
    return part(resize(image_3HW[None], size)[0], shape, _MIDDLE)


def _cells(image: Labelled) -> list[Tensor]:
    """Return an image, its classes in colours if it has any, and its depths in greys if it has any, the nearest dark."""
    cells, label_HW, depth_HW = [image.image_B3HW[0]], image.label_BHW[0], image.depth_BHW[0].float()
    if bool((label_HW != IGNORED).any()):
        cells.append(_COLOURS[label_HW.long()].permute(2, 0, 1))
    if bool((depth_HW > 0).any()):
        grey_HW = (depth_HW / depth_HW.max() * 255).byte()
        cells.append(grey_HW.expand(3, *grey_HW.shape))
    return cells


def _colour(number: int) -> list[int]:
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.7, 0.95)]


_COLOURS = torch.tensor([*map(_colour, range(IGNORED)), [0, 0, 0]], dtype=torch.uint8)  # what is ignored is black
