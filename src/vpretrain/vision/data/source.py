"""Sources of images: generated scenes and the paper's sets with labels; folders, shards and hub data sets without."""

from __future__ import annotations

import glob
import io
import itertools
import math
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.pretrained import first_line
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.readers import as_tensor, read_ade20k, read_image, read_nyuv2
from vpretrain.vision.data.resize import Shape, nearest, resize
from vpretrain.vision.data.scenes import CLASSES, rendered
from vpretrain.vision.model.batch import Labelled

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Images(ABC):
    """Unlabeled images by index."""

    items: Any  # what each image is read from

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]. Raises UserError if it cannot be read."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the identity of an image."""


def open_images(config: SourceConfig) -> Images:
    """Open the unlabeled images of a source.

    Raises:
        UserError: there are none, or the source is a labelled set.
    """
    if config.scenes is not None:
        return _Scenes(config)
    if config.hub is not None:
        return _Hub(config)
    if config.path is None:
        raise UserError(f"{config.origin} is labelled: the stream takes scenes, hub, or a path to its images")
    return _Shards(config.path) if config.path.endswith(".tar") else _Folder(config.path)


class _Scenes(Images):
    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.items = _scenes(config)["image_N3HW"]

    def __getitem__(self, index: int) -> Tensor:
        return self.items[index]

    def key(self, index: int) -> str:
        return f"{self.config.seed}/{index // self.config.cameras}"


class _Folder(Images):
    def __init__(self, path: str) -> None:
        self.items = images_in(Path(path).expanduser())
        if not self.items:
            raise UserError(f"no images in {path}: give a folder with {', '.join(sorted(_SUFFIXES))} files")

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.items[index])

    def key(self, index: int) -> str:
        return str(self.items[index])


class _Shards(Images):
    """Images in uncompressed tar files, read in place."""

    def __init__(self, path: str) -> None:
        self.items: list[tuple[str, str, int, int]] = []  # shard, name, offset, size
        for shard in sorted(glob.glob(str(Path(path).expanduser()))):
            try:
                with tarfile.open(shard, "r:") as tar:
                    self.items += [
                        (shard, m.name, m.offset_data, m.size)
                        for m in tar
                        if m.isfile() and Path(m.name).suffix.lower() in _SUFFIXES
                    ]
            except (OSError, tarfile.TarError) as error:
                raise UserError(f"cannot read the shard {shard}: {error}; shards are uncompressed .tar files") from None
        if not self.items:
            raise UserError(f"no images in {path}: give .tar files with {', '.join(sorted(_SUFFIXES))} members")

    def __getitem__(self, index: int) -> Tensor:
        shard, name, offset, size = self.items[index]
        with open(shard, "rb") as file:
            file.seek(offset)
            return read_image(io.BytesIO(file.read(size)), f"{shard}:{name}")

    def key(self, index: int) -> str:
        return ":".join(self.items[index][:2])


class _Hub(Images):
    def __init__(self, config: SourceConfig) -> None:
        import datasets

        datasets.disable_progress_bars()
        assert config.hub is not None
        try:
            self.items = datasets.load_dataset(config.hub, config.config, split=config.split)
        except Exception as error:  # datasets raises many kinds of errors when data are unavailable
            reason = f"{first_line(error.__cause__ or error)}; check name, split and network, or give a path"
            raise UserError(f"cannot load {config.hub}: {reason}") from None
        names = self.items.column_names
        if config.column not in names:
            raise UserError(f"{config.hub} has no column '{config.column}': set column to one of {names}")
        self.config = config

    def __getitem__(self, index: int) -> Tensor:
        return as_tensor(self.items[index][self.config.column])

    def key(self, index: int) -> str:
        return f"{self.config.hub}/{index}"


def images_in(folder: Path) -> list[Path]:
    """List the image files in a folder and below it, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)


def labelled(sources: Sequence[SourceConfig], shape: Shape) -> Labelled:
    """Read all labelled images of some sources, resized to `shape`. Raises UserError for sources without labels."""
    parts = []
    for config in sources:
        if config.ade20k is not None:
            parts.append(read_ade20k(config, shape))
        elif config.nyuv2 is not None:
            parts.append(read_nyuv2(config, shape))
        elif config.scenes is not None:
            data = _scenes(config)
            parts.append(
                Labelled(
                    image_B3HW=resize(data["image_N3HW"], shape),
                    label_BHW=nearest(data["label_NHW"], shape).byte(),
                    depth_BHW=nearest(data["depth_NHW"], shape).half(),
                    scene_B=data["scene_N"] + 1_000_003 * config.seed,
                    category_B=data["category_N"],
                    classes=len(CLASSES),
                )
            )
        else:
            raise UserError(f"{config.origin} has no labels: feedback and evaluation need labelled images")
    classes = {part.classes for part in parts if part.classes}
    if len(classes) > 1:
        raise UserError(f"sources with {sorted(classes)} classes do not go together: use one kind for segmentation")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "classes"}
    return Labelled(**joined, classes=max(classes, default=0))


def check_disjoint(roles: dict[str, Sequence[SourceConfig]]) -> None:
    """Raise UserError if two roles have the same scenes, or if labelled images have two roles that must not share any.

    The probes' training set may contain images of the feedback, as ADE20K's does in the paper; the test set may not.
    """
    pairs = itertools.combinations(("feedback.heads", "feedback.meta", "evaluation.train", "evaluation.test"), 2)
    for one, other in pairs:
        if other == "evaluation.train":
            continue
        for a, b in itertools.product(roles[one], roles[other]):
            if _labelled_set(a) is not None and _labelled_set(a) == _labelled_set(b) and _overlap(a, b):
                raise UserError(f"{one} and {other} share images of {a.origin}: keep them apart with skip and limit")
    owner: dict[int, str] = {}
    for role, sources in roles.items():
        for seed in {source.seed for source in sources if source.scenes is not None}:
            if seed in owner:
                raise UserError(f"{role} and {owner[seed]} show the same scenes (seed {seed}): give each its own seed")
            owner[seed] = role


def _labelled_set(config: SourceConfig) -> tuple[str, str] | None:
    if config.ade20k is not None:
        return str(Path(config.ade20k).expanduser().resolve()), config.split
    return None if config.nyuv2 is None else (str(Path(config.nyuv2).expanduser().resolve()), "")


def _overlap(a: SourceConfig, b: SourceConfig) -> bool:
    """Whether two ranges of one set overlap."""
    ends = [math.inf if config.limit is None else config.skip + config.limit for config in (a, b)]
    return a.skip < ends[1] and b.skip < ends[0]


def _scenes(config: SourceConfig) -> dict[str, Tensor]:
    assert config.scenes is not None
    return rendered(seed=config.seed, scenes=config.scenes, cameras=config.cameras, size=config.size)
