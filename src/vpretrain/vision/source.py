"""Sources of pictures: generated scenes with labels, folders of files without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.vision.batch import Labelled
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.readers import read_ade20k, read_nyuv2, read_picture
from vpretrain.vision.resize import nearest, resize
from vpretrain.vision.scenes import CLASSES, rendered

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Pictures:
    """Unlabeled pictures by number."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self._images: Tensor | None = None
        self._files: list[Path] = []
        if config.scenes is not None:
            self._images = _scenes(config)["image_N3HW"]
        else:
            if config.path is None:
                raise UserError(f"{config.origin} is labelled: the stream takes scenes, or a path to its pictures")
            root = Path(config.path).expanduser()
            self._files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not self._files:
                raise UserError(
                    f"no pictures in {config.path}: give a folder with {', '.join(sorted(_SUFFIXES))} files"
                )

    def __len__(self) -> int:
        return len(self._files) if self._images is None else len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        """A picture, uint8 [3, H, W]. Raises UserError for a file that cannot be read."""
        if self._images is not None:
            return self._images[index]
        return read_picture(self._files[index])

    def key(self, index: int) -> str:
        """Identity of a picture."""
        if self._images is None:
            return str(self._files[index])
        return f"{self.config.seed}/{index // self.config.cameras}"


def labelled(sources: Sequence[SourceConfig], size: int) -> Labelled:
    """All labelled pictures of some sources, resized to `size`. Raises UserError for sources without labels."""
    parts = []
    for config in sources:
        if config.ade20k is not None:
            parts.append(read_ade20k(config, size))
        elif config.nyuv2 is not None:
            parts.append(read_nyuv2(config, size))
        elif config.scenes is not None:
            data = _scenes(config)
            parts.append(
                Labelled(
                    image_B3HW=resize(data["image_N3HW"], size),
                    label_BHW=nearest(data["label_NHW"], size).byte(),
                    depth_BHW=nearest(data["depth_NHW"], size).half(),
                    scene_B=data["scene_N"] + 1_000_003 * config.seed,
                    category_B=data["category_N"],
                    classes=len(CLASSES),
                )
            )
        else:
            raise UserError(f"{config.origin} has no labels: feedback and evaluation need labelled pictures")
    classes = {part.classes for part in parts if part.classes}
    if len(classes) > 1:
        raise UserError(f"sources with {sorted(classes)} classes do not go together: use one kind for segmentation")
    joined = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
    return Labelled(**joined, classes=max(classes, default=0))


def check_disjoint(roles: dict[str, Sequence[SourceConfig]]) -> None:
    """Raises UserError if two roles show the same scenes."""
    owner: dict[int, str] = {}
    for role, sources in roles.items():
        for seed in {source.seed for source in sources if source.scenes is not None}:
            if seed in owner:
                raise UserError(f"{role} and {owner[seed]} show the same scenes (seed {seed}): give each its own seed")
            owner[seed] = role


def _scenes(config: SourceConfig) -> dict[str, Tensor]:
    assert config.scenes is not None
    return rendered(seed=config.seed, scenes=config.scenes, cameras=config.cameras, size=config.size)
