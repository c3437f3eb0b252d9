"""Sources of images: generated scenes, own and the paper's sets with labels; folders, shards and hub data sets without."""

from __future__ import annotations

import functools
import glob
import io
import itertools
import math
import os
import re
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpretrain import hub
from vpretrain.console import steady
from vpretrain.errors import Missing, UserError
from vpretrain.pretrained import first_line
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.ahead import ahead
from vpretrain.vision.data.image_files import LISTED, images_in, is_image
from vpretrain.vision.data.own import Own, shared_images
from vpretrain.vision.data.pixels import as_tensor
from vpretrain.vision.data.readers import Ade20k, Nyuv2, Reader, Sample, read_image, readable
from vpretrain.vision.data.resize import Shape, covering, nearest, part, resize
from vpretrain.vision.data.scenes import CLASSES, rendered
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.heads import LabelKind

_KEPT_BYTES = 4 * 2**30  # of each pool of labelled images
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, spread the parts of a pool's images evenly
_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$")


class Images(ABC):
    """Unlabeled images by index."""

    items: Any  # what each image is read from

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]. Raises as `readable`."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the identity of an image."""


def open_images(config: SourceConfig) -> Images:
    """Open the unlabeled images of a source.

    Raises:
        UserError: there are none, they lie in a compressed tar file, or the source is a labelled set.
    """
    if config.scenes is not None:
        return _Scenes(config)
    if config.hub is not None:
        return _Hub(config)
    if config.path is None:
        raise UserError(f"{config.origin} is labelled: the stream takes scenes, hub, or a path to its images")
    if _COMPRESSED_TAR.search(config.path):  # to reach an image, all before it would have to be decompressed
        raise UserError(
            f"{config.path}: images of a compressed tar file cannot be read in place: unpack it, or give .tar or .zip files"
        )
    return _Archives(config.path) if is_archive(config.path) else _Folder(config.path)


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
            raise Missing(f"no images in {path}: give a folder with {LISTED} files, or .zip or .tar files of them")

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.items[index])

    def key(self, index: int) -> str:
        return str(self.items[index])


class _Archives(Images):
    """Images in uncompressed tar files and in zip files, read in place."""

    def __init__(self, path: str) -> None:
        self.items: list[tuple[str, str, int, int]] = []  # archive, name; in a tar file offset and size
        for archive in sorted(glob.glob(str(Path(path).expanduser()))):
            try:
                self.items += _zip_members(archive) if archive.endswith(".zip") else _tar_members(archive)
            except Exception as error:  # other files make both modules raise many kinds of errors
                raise UserError(
                    f"cannot read the shard {archive}: {first_line(error)}; shards are .zip or uncompressed .tar files"
                ) from None
        if not self.items:
            raise Missing(f"no images in {path}: give .zip or .tar files with {LISTED} members")

    def __getitem__(self, index: int) -> Tensor:
        archive, name, offset, size = self.items[index]
        if not archive.endswith(".zip"):
            with open(archive, "rb") as file:
                file.seek(offset)
                return read_image(io.BytesIO(file.read(size)), self.key(index))
        # Not read as a whole: a small member may expand to any size.
        with readable("image", self.key(index)), _opened(archive, os.getpid()).open(name) as member:
            return read_image(member, self.key(index))

    def key(self, index: int) -> str:
        return ":".join(self.items[index][:2])


def _tar_members(archive: str) -> list[tuple[str, str, int, int]]:
    with tarfile.open(archive, "r:") as tar:
        return [(archive, m.name, m.offset_data, m.size) for m in tar if m.isfile() and is_image(m.name)]


def _zip_members(archive: str) -> list[tuple[str, str, int, int]]:
    with zipfile.ZipFile(archive) as opened:
        return [(archive, name, 0, 0) for name in opened.namelist() if is_image(name)]


@functools.lru_cache(maxsize=256)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    """A zip file, opened once, since its directory takes long to read, and by each process: they would share its position."""
    return zipfile.ZipFile(archive)


class _Hub(Images):
    def __init__(self, config: SourceConfig) -> None:
        import datasets

        datasets.disable_progress_bars()
        assert config.hub is not None
        with hub.access() as closed:
            try:
                self.items = datasets.load_dataset(config.hub, config.config, split=config.split)
            except Exception as error:  # datasets raises many kinds of errors when data are unavailable
                remedy = "check name, split and network, or give a path"
                if closed is not None:
                    remedy = hub.remedy(closed, "give a path")
                raise UserError(f"cannot load {config.hub}: {first_line(error.__cause__ or error)}; {remedy}") from None
        names = self.items.column_names
        if config.column not in names:
            raise UserError(f"{config.hub} has no column '{config.column}': set column to one of {names}")
        self.config = config

    def __getitem__(self, index: int) -> Tensor:
        with readable("image", self.key(index)):
            return as_tensor(self.items[index][self.config.column])

    def key(self, index: int) -> str:
        return f"{self.config.hub}/{index}"


def is_archive(path: str) -> bool:
    """Whether a source's path names archives of images."""
    return path.endswith((".tar", ".zip"))


class _LabelledScenes(Reader):
    """Generated scenes, with classes and depths."""

    kinds: frozenset[LabelKind] = frozenset({"segmentation", "depth"})
    classes = len(CLASSES)

    def __init__(self, config: SourceConfig) -> None:
        self.data = _scenes(config)
        self.scene_N, self.category_N = self.data["scene_N"] + 1_000_003 * config.seed, self.data["category_N"]

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.data["image_N3HW"][index],
            self.data["label_NHW"][index].byte(),
            self.data["depth_NHW"][index].half(),
        )


class Pool:
    """All labelled images of some sources. They are read as they are needed, or by `read_files`; the first gigabytes are kept.

    Args:
        sources: labelled sets.
        shape: height and width: each image is scaled to just cover it, and cut; where depends only on its number. None for
            whole images at their own sizes.

    Raises:
        UserError: a source has no labels or cannot be read, or sources have different classes.
    """

    def __init__(self, sources: Sequence[SourceConfig], shape: Shape | None) -> None:
        self.shape, self.readers = shape, [open_labelled(config) for config in sources]
        classes = {reader.classes for reader in self.readers if reader.classes}
        if len(classes) > 1:
            raise UserError(f"sources with {sorted(classes)} classes do not go together: use one kind for segmentation")
        self.classes = max(classes, default=0)
        self.scene_N = torch.cat([reader.scene_N for reader in self.readers])
        self.category_N = torch.cat([reader.category_N for reader in self.readers])
        self._where = [(reader, index) for reader in self.readers for index in range(len(reader))]
        self._kept: dict[int, Sample] = {}
        self._left = _KEPT_BYTES
        for reader in self.readers:
            reader.read(0)  # finds most of what is wrong before the long run

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        """Return some of the images, which must have one size."""
        return self._together(rows, map(self._read, rows))

    def batches(self, rows_of: Sequence[Sequence[int]]) -> Iterator[Labelled]:
        """Yield batches of images of one size, in order; their images are read ahead."""
        samples = ahead(self._read, itertools.chain.from_iterable(rows_of))
        for rows in rows_of:
            yield self._together(rows, itertools.islice(samples, len(rows)))

    def _together(self, rows: Sequence[int], samples: Iterable[Sample]) -> Labelled:
        """Join images that were read, and keep them for later; not called by threads that read ahead."""
        found = []
        for row, sample in zip(rows, samples, strict=True):
            self._keep(row, sample)
            found.append(sample)
        images, labels, depths = zip(*found, strict=True)
        size = images[0].shape[1:]
        no_class, no_depth = torch.full(size, IGNORED, dtype=torch.uint8), torch.zeros(size, dtype=torch.float16)
        return Labelled(
            image_B3HW=torch.stack(images),
            label_BHW=torch.stack([no_class if x is None else x for x in labels]),
            depth_BHW=torch.stack([no_depth if x is None else x for x in depths]),
            scene_B=self.scene_N[list(rows)],
        )

    def having(self, kind: LabelKind) -> list[int]:
        """Return the indices of the images whose set has labels of a kind."""
        return [number for number, (reader, _) in enumerate(self._where) if kind in reader.kinds]

    def read_files(self, title: str) -> None:
        """Read the images in files that are not kept yet, so that a broken one is met now; `title` is of the progress.

        Raises as `Reader.read`.
        """
        numbers = [
            number
            for number, (reader, _) in enumerate(self._where)
            if number not in self._kept and not isinstance(reader, _LabelledScenes)
        ]
        if not numbers:
            return
        with steady(f"{title:>17}", len(numbers), "images") as done:
            for count, (number, sample) in enumerate(zip(numbers, ahead(self._read, numbers), strict=True), start=1):
                self._keep(number, sample)
                done(count)

    def _read(self, number: int) -> Sample:
        if number in self._kept:
            return self._kept[number]
        reader, index = self._where[number]
        found = reader.read(index)
        if self.shape is not None:
            found = _part(found, self.shape, number * _GOLDEN % 1)
        return found

    def _keep(self, number: int, sample: Sample) -> None:
        size = sum(tensor.nbytes for tensor in sample if tensor is not None)
        if number not in self._kept and size <= self._left:
            self._kept[number], self._left = sample, self._left - size


def _part(sample: Sample, shape: Shape, place: float) -> Sample:
    """Scale an image and its labels alike until they just cover `shape`, and cut out a part of this shape."""
    image_3HW, label_HW, depth_HW = sample
    size = covering((image_3HW.shape[1], image_3HW.shape[2]), shape)

    def cut(map_HW: Tensor | None) -> Tensor | None:
        return None if map_HW is None else part(nearest(map_HW[None], size)[0], shape, place).clone()

    return part(resize(image_3HW[None], size)[0], shape, place).clone(), cut(label_HW), cut(depth_HW)


def open_labelled(config: SourceConfig) -> Reader:
    """Open the labelled images of a source. Raises UserError if it has none, or cannot be read."""
    if config.ade20k is not None:
        return Ade20k(config)
    if config.nyuv2 is not None:
        return Nyuv2(config)
    if config.labelled is not None:
        return Own(config)
    if config.scenes is not None:
        return _LabelledScenes(config)
    raise UserError(f"{config.origin} has no labels: feedback and evaluation need labelled images")


def check_disjoint(roles: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Raise UserError if two roles have the same scenes, or if labelled images have two roles that must not share any.

    The probes' training set may contain images of the feedback, as ADE20K's does in the paper; the test set may not. Nor may
    a part of NYUv2's file be the test set of a run that takes another part: official test images lie everywhere in the file.
    """
    pairs = itertools.combinations(("feedback.heads", "feedback.meta", "evaluation.train", "evaluation.test"), 2)
    for one, other in pairs:
        if other == "evaluation.train":
            continue
        for a, b in itertools.product(roles[one], roles[other]):
            if a.labelled is not None and b.labelled is not None and (shared := shared_images(a, b)):
                (file, twin), *more = shared
                copy = "" if twin == file else f", a copy of {twin}"
                others = f", and {len(more)} more" if more else ""
                raise UserError(
                    f"{one} and {other} share the image {file}{copy}{others}: keep them apart with skip and limit, or remove "
                    "the copies"
                )
            if _labelled_set(a) is None or _labelled_set(a) != _labelled_set(b):
                continue
            if _path(a.splits) != _path(b.splits):
                raise UserError(
                    f"{one} and {other} count the images of {a.origin} differently: give both the same splits"
                )
            if a.nyuv2 is not None and a.splits is None and other == "evaluation.test":
                raise UserError(
                    f"{one} and {other} take parts of {a.origin}, which mix its official test images with others: "
                    "give both splits, with split: train and split: test"
                )
            if a.split == b.split and _overlap(a, b):
                raise UserError(f"{one} and {other} share images of {a.origin}: keep them apart with skip and limit")
    owner: dict[int, str] = {}
    for role, sources in roles.items():
        for seed in {source.seed for source in sources if source.scenes is not None}:
            if seed in owner:
                raise UserError(f"{role} and {owner[seed]} show the same scenes (seed {seed}): give each its own seed")
            owner[seed] = role


def _labelled_set(config: SourceConfig) -> tuple[str, str] | None:
    if (root := _path(config.ade20k)) is not None:
        return root, config.split
    return None if (file := _path(config.nyuv2)) is None else (file, "")


def _path(given: str | None) -> str | None:
    return None if given is None else str(Path(given).expanduser().resolve())


def _overlap(a: SourceConfig, b: SourceConfig) -> bool:
    """Whether two ranges of one set overlap."""
    ends = [math.inf if config.limit is None else config.skip + config.limit for config in (a, b)]
    return a.skip < ends[1] and b.skip < ends[0]


def _scenes(config: SourceConfig) -> dict[str, Tensor]:
    assert config.scenes is not None
    return rendered(seed=config.seed, scenes=config.scenes, cameras=config.cameras, size=config.size)
