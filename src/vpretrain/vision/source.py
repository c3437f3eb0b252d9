"""Sources of pictures: generated scenes with labels, folders of files without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vpretrain.errors import UserError
from vpretrain.vision.batch import Labelled
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.scenes import rendered

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
            assert config.path is not None
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
        return _read(self._files[index])

    def key(self, index: int) -> str:
        """Identity of a picture."""
        if self._images is None:
            return str(self._files[index])
        return f"{self.config.seed}/{index // self.config.cameras}"


def labelled(sources: Sequence[SourceConfig], size: int) -> Labelled:
    """All labelled pictures of some sources, resized to `size`. Raises UserError for sources without labels."""
    parts = []
    for config in sources:
        if config.scenes is None:
            raise UserError(f"{config.origin} has no labels: feedback and evaluation need labelled pictures")
        data = _scenes(config)
        parts.append(
            Labelled(
                resize(data["image_N3HW"], size),
                F.interpolate(data["label_NHW"][:, None].float(), (size, size), mode="nearest")[:, 0].long(),
                F.interpolate(data["depth_NHW"][:, None].float(), (size, size), mode="nearest")[:, 0],
                data["scene_N"] + 1_000_003 * config.seed,
                data["category_N"],
            )
        )
    return Labelled(*(torch.cat([getattr(p, name) for p in parts]) for name in Labelled.__dataclass_fields__))


def resize(image_B3HW: Tensor, size: int) -> Tensor:
    """uint8 pictures as fp32 in [0, 1], `size` pixels a side."""
    return F.interpolate(image_B3HW.float() / 255, (size, size), mode="bilinear", antialias=True, align_corners=False)


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


def _read(file: Path) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the picture {file}: {error}; remove it") from None
