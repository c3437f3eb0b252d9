"""Own labelled images: a folder with images/, masks/ and, where depths are known, depths/. Shapes: H x W pixels."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.image_files import folder_per_class, images_in
from vpretrain.vision.data.readers import Reader, check_size, read_classes, read_depths, read_image
from vpretrain.vision.model.batch import IGNORED
from vpretrain.vision.model.heads import LabelKind

_MILLIMETRES = 1000  # per metre


class Own(Reader):
    """Images with a map of classes each, and with a map of depths each if the folder has any.

    Raises:
        UserError: there are no images, or an image has no map of its own.
    """

    kinds: frozenset[LabelKind] = frozenset({"segmentation"})

    def __init__(self, config: SourceConfig) -> None:
        assert config.labelled is not None
        assert config.classes is not None
        self.root, self.classes = Path(config.labelled).expanduser(), config.classes
        self.has_depths = (self.root / "depths").is_dir()
        if self.has_depths:
            self.kinds = frozenset({"segmentation", "depth"})
        self.files = own_images(config)
        if not self.files:
            raise UserError(
                f"no images in {self.root / 'images'} (skip={config.skip}){folder_per_class(self.root)}: labelled names a "
                "folder with images/ and masks/"
            )
        for folder in ("masks", "depths") if self.has_depths else ("masks",):
            owner: dict[Path, Path] = {}
            for file in self.files:
                labels = self._labels(folder, file)
                if not labels.is_file():
                    raise UserError(f"{file} has no labels {labels}: add them, or remove the image")
                if labels in owner:
                    raise UserError(f"{owner[labels]} and {file} have the same labels {labels}: give them other names")
                owner[labels] = file
        self.apart(f"{self.root}/{config.skip}", len(self.files))

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        file = self.files[index]
        image_3HW, mask = read_image(file), self._labels("masks", file)
        class_HW = read_classes(mask, file)
        check_size(mask, class_HW, image_3HW)
        wrong = class_HW[(class_HW >= self.classes) & (class_HW != IGNORED)]
        if len(wrong):
            raise UserError(
                f"{mask} has class {int(wrong.max())}: with classes: {self.classes}, masks have 0 to {self.classes - 1}, and "
                f"{IGNORED} for what is ignored"
            )
        if not self.has_depths:
            return image_3HW, class_HW.byte(), None
        depths = self._labels("depths", file)
        depth_HW = read_depths(depths, file)
        check_size(depths, depth_HW, image_3HW)
        return image_3HW, class_HW.byte(), (depth_HW / _MILLIMETRES).half()

    def _labels(self, folder: str, file: Path) -> Path:
        return (self.root / folder / file.relative_to(self.root / "images")).with_suffix(".png")


def own_images(config: SourceConfig) -> list[Path]:
    """List the images of a source with `labelled`, in the order of `distinct_images`."""
    return distinct_images(Path(str(config.labelled)).expanduser() / "images")[config.skip :][: config.limit]


def distinct_images(folder: Path) -> list[Path]:
    """List the images in a folder and below it, in the order of the hashes of their names; of copies, the first."""

    def place(file: Path) -> bytes:
        return hashlib.sha256(file.relative_to(folder).with_suffix("").as_posix().encode()).digest()

    return [copies[0] for copies in _by_content(sorted(images_in(folder), key=place))]


def shared_images(a: SourceConfig, b: SourceConfig) -> list[tuple[Path, Path]]:
    """Return the pairs of images, one of each source, that have the same content, under any names; the second's first."""
    # No source has copies of its own, so that two files of the same content are one of each.
    groups = _by_content([*own_images(a), *own_images(b)])
    return [(group[1], group[0]) for group in groups if len(group) > 1]


def _by_content(files: Sequence[Path]) -> list[list[Path]]:
    """Group files by their content, in the order of the first of each group; only those of equal sizes are read."""
    stats = {file: file.stat() for file in files}
    count = Counter(stat.st_size for stat in stats.values())
    found: defaultdict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for file in files:
        size, changed = stats[file].st_size, stats[file].st_mtime_ns
        found[size, _digest(file, changed) if count[size] > 1 else b""].append(file)
    return list(found.values())


@functools.cache
def _digest(file: Path, changed: int) -> bytes:
    """Hash a file once for all roles, unless it has changed since."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
