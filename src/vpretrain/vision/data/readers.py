"""Readers of the paper's labelled sets: ADE20K as SceneParse150, and NYUv2. Shapes: B images, H x W pixels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.resize import Shape, nearest, resize
from vpretrain.vision.model.batch import IGNORED, Labelled

ADE_CLASSES = 150
_EIGEN = (slice(45, 471), slice(41, 601))  # rows and columns of a 480 x 640 image


def read_ade20k(config: SourceConfig, shape: Shape) -> Labelled:
    """Read SceneParse150: label 0 (other) is ignored, 1 to 150 become 0 to 149.

    Raises:
        UserError: a folder or an annotation is missing, or is not a map of classes.
    """
    assert config.ade20k is not None
    root = Path(config.ade20k).expanduser()
    files = sorted((root / "images" / config.split).glob("*.jpg"))[config.skip :][: config.limit]
    if not files:
        raise UserError(f"no images in {root / 'images' / config.split}: ade20k names the folder of SceneParse150")
    images, labels = [], []
    for file in files:
        annotation = root / "annotations" / config.split / f"{file.stem}.png"
        raw_HW = read_classes(annotation)
        if int(raw_HW.max()) > ADE_CLASSES:
            raise UserError(f"{annotation} has class {int(raw_HW.max())}: SceneParse150 has 0 to {ADE_CLASSES}")
        label_HW = torch.where(raw_HW == 0, IGNORED, raw_HW - 1)
        images.append(resize(read_image(file)[None], shape))
        labels.append(nearest(label_HW[None], shape).byte())
    return _without(f"{root}/{config.skip}", torch.cat(images), label_BHW=torch.cat(labels), classes=ADE_CLASSES)


def read_nyuv2(config: SourceConfig, shape: Shape) -> Labelled:
    """Read nyu_depth_v2_labeled.mat: depths in metres, within Eigen's crop if asked for.

    Raises:
        UserError: the file is missing or has other contents, or no depth is valid.
    """
    try:
        import h5py
    except ImportError:
        raise UserError('reading NYUv2 needs the h5py package: pip install "vpretrain[vision]"') from None
    stop = None if config.limit is None else config.skip + config.limit
    try:
        with h5py.File(str(config.nyuv2), "r") as file:
            images = torch.from_numpy(file["images"][config.skip : stop]).transpose(2, 3)  # stored column by column
            depths = torch.from_numpy(file["depths"][config.skip : stop]).float().transpose(1, 2)
    except (OSError, KeyError) as error:
        raise UserError(f"cannot read {config.nyuv2}: {error}; nyuv2 names nyu_depth_v2_labeled.mat") from None
    if len(images) == 0:
        raise UserError(f"{config.nyuv2}: no images are left after skip={config.skip}")
    if config.eigen_crop and depths.shape[1:] == (480, 640):
        kept = torch.zeros_like(depths)
        kept[:, *_EIGEN] = depths[:, *_EIGEN]
        depths = kept
    return _without(f"{config.nyuv2}/{config.skip}", resize(images, shape), depth_BHW=nearest(depths, shape).half())


def read_image(file: Path | IO[bytes], name: str | None = None) -> Tensor:
    """Read an image as uint8 [3, H, W]. Raises UserError for a file that is not an image."""
    return _read(file, f"the image {name or file}", as_tensor)


def as_tensor(image: Any) -> Tensor:
    """Convert a PIL image to uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_classes(file: Path) -> Tensor:
    """Read a map of classes [H, W]. Raises UserError if the file is missing or holds colours instead of classes."""
    array = _read(file, f"the map of classes {file}", lambda image: torch.from_numpy(np.array(image)))
    if array.ndim != 2:
        raise UserError(f"{file} is no map of classes but an image of {array.shape[2]} channels: give one channel")
    return array.long()


def _read(file: Path | IO[bytes], what: str, convert: Callable[[Any], Tensor]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return convert(image)
    except OSError as error:  # also where it is no image
        raise UserError(f"cannot read {what}: {error}; remove or replace it") from None


def _without(
    name: str, image_B3HW: Tensor, *, label_BHW: Tensor | None = None, depth_BHW: Tensor | None = None, classes: int = 0
) -> Labelled:
    """Make a set of images without classes or without depths, each of its own scene."""
    images, _, height, width = image_B3HW.shape
    return Labelled(
        image_B3HW=image_B3HW,
        label_BHW=torch.full((images, height, width), IGNORED, dtype=torch.uint8) if label_BHW is None else label_BHW,
        depth_BHW=torch.zeros(images, height, width, dtype=torch.float16) if depth_BHW is None else depth_BHW,
        scene_B=torch.arange(images) + (zlib.crc32(name.encode()) << 24),
        category_B=torch.full((images,), -1),
        classes=classes,
    )
