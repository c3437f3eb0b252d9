"""From a PIL image of any mode to uint8 RGB: upright, on white, scaled by the range of its type. Shapes: H x W pixels."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vpretrain.errors import UserError

PilImage = Any  # Pillow is an extra, imported when it is needed

_ORIENTATION = 0x0112  # the EXIF tag; 1: upright
_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
_SIXTEEN_BITS = 65_535
_LEVELS = {"L;2": 85, "L;4": 17}  # between grey levels of a PNG with 2 or 4 bits, once Pillow has widened them to 8


def as_tensor(image: PilImage) -> UInt8[Tensor, "3 H W"]:
    """Convert an image: turned by its EXIF orientation, transparency laid on white, 16 bits scaled to 8, floats from [0, 1].

    Raises:
        UserError: floats outside [0, 1], integers outside 16 bits, a transparent colour of 16 bits per channel, or a mode that
            Pillow cannot convert to RGB.
    """
    from PIL import Image

    _fit_transparent_value(image)
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        image = _as_grey(image)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except ValueError:
        raise UserError(f"an image of mode {image.mode} cannot be converted to RGB: convert it before") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def orientation_of(image: PilImage) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1, upright, if it has none or none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, TypeError, ValueError, struct.error):  # the pixels may be sound all the same
        return 1


def stored_size(image: PilImage) -> tuple[int, int]:
    """Return width and height of an image as it is stored, before it is loaded: Pillow gives those of a TIFF as it is shown."""
    tags = getattr(image, "tag_v2", None)
    return image.size if tags is None else (tags[_WIDTH], tags[_HEIGHT])


def labels_as_tensor(labels: PilImage, size: tuple[int, int], orientation: int) -> Tensor:
    """Convert a map of labels, turned by its own EXIF orientation or, if it is stored like its image, by that of the image.

    `size` is width and height of the image as it is stored, `orientation` the image's.
    """
    if orientation_of(labels) == 1 and labels.size == size:
        labels.getexif()[_ORIENTATION] = orientation
    return torch.from_numpy(np.array(_upright(labels)).astype(np.int64))


def _fit_transparent_value(image: PilImage) -> None:
    """Give the transparent value of a PNG the range of its pixels: Pillow keeps the value as stored, but not always the pixels.

    Must come before the pixels are loaded, which forgets how they are stored.
    """
    value = image.info.get("transparency")
    if value is None:
        return
    stored = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    # Of an image that is loaded already, as those of the hub, only the value itself may tell its bits.
    if stored == "RGB;16B" or (isinstance(value, tuple) and max(value) > 255):
        raise UserError(
            "an image of 16 bits per colour with a transparent colour, of which Pillow keeps 8 bits: save it with 8 bits per "
            "colour, or with an alpha channel"
        )
    if stored in _LEVELS:
        image.info["transparency"] = value * _LEVELS[stored]


def _upright(image: PilImage) -> PilImage:
    from PIL import ImageOps

    # Else Pillow maps the file of an uncompressed TIFF, and takes the shape that is shown for the one that is stored.
    image.filename = ""
    image.load()  # by which Pillow turns a TIFF itself
    return image if orientation_of(image) == 1 else ImageOps.exif_transpose(image)


def _as_grey(image: PilImage) -> PilImage:
    """Return an image of 16-bit integers or of floats as one of 8 bits; Pillow's own conversion cuts off what is above 255.

    A transparent value becomes an alpha channel: after the scaling other values would share it.
    """
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    most, kind = (1.0, "floats") if image.mode == "F" else (_SIXTEEN_BITS, "integers")
    if not (values.min() >= 0 and values.max() <= most):  # also NaN
        raise UserError(
            f"an image of {kind} from {values.min():g} to {values.max():g}: they must be from 0 to {most:g}"
        )
    grey = Image.fromarray(np.rint(values / most * 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", [grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))])
