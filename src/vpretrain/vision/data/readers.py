"""Readers of the paper's labelled sets: ADE20K as SceneParse150, and NYUv2. Shapes: N images, H x W pixels."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vpretrain.errors import Missing, Unreadable, UserError
from vpretrain.pretrained import first_line
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.pixels import PilImage, as_tensor, labels_as_tensor, orientation_of, stored_size
from vpretrain.vision.model.batch import IGNORED
from vpretrain.vision.model.heads import LabelKind

if TYPE_CHECKING:
    import h5py

ADE_CLASSES = 150
_EIGEN = (slice(45, 471), slice(41, 601))  # rows and columns of a 480 x 640 image


Item = TypeVar("Item")
Sample = tuple[Tensor, Tensor | None, Tensor | None]


class Reader(ABC):
    """A labelled set: images by index, read as they are needed.

    Attributes:
        kinds: the labels that its images have.
        classes: number of classes; 0 without.
        scene_N: scene of every image; images of one scene have the same number.
        category_N: class of the main object of every image; -1 where unknown.
    """

    kinds: frozenset[LabelKind]
    classes: int
    scene_N: Tensor
    category_N: Tensor

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Return image [3, H, W] and classes [H, W] as uint8, depths [H, W] as fp16; None for a kind that the set lacks.

        Several threads may read at once. Raises as `readable`, and UserError for labels that do not fit.
        """

    def __len__(self) -> int:
        return len(self.scene_N)

    def apart(self, name: str, images: int) -> None:
        """Note that each image is of its own scene, of an unknown category."""
        self.scene_N = torch.arange(images) + (zlib.crc32(name.encode()) << 24)
        self.category_N = torch.full((images,), -1)


class Ade20k(Reader):
    """SceneParse150: label 0 (other) is ignored, 1 to 150 become 0 to 149.

    Its files are sorted by scene, so `skip` and `limit` count along the hashes of their names.

    Raises:
        UserError: a folder or an annotation is missing, or is not a map of classes.
    """

    kinds: frozenset[LabelKind] = frozenset({"segmentation"})
    classes = ADE_CLASSES

    def __init__(self, config: SourceConfig) -> None:
        assert config.ade20k is not None
        self.root, self.split = Path(config.ade20k).expanduser(), config.split
        self.files = ade20k_images(config)
        if not self.files:
            raise Missing(f"no images in {self.root / 'images' / self.split}: ade20k names the folder of SceneParse150")
        for file in self.files:
            if not self._annotation(file).is_file():
                raise UserError(f"cannot read the map of classes {self._annotation(file)}: there is no such file")
        self.apart(f"{self.root}/{config.split}/{config.skip}", len(self.files))

    def read(self, index: int) -> tuple[Tensor, Tensor, None]:
        file = self.files[index]
        annotation = self._annotation(file)
        raw_HW = read_classes(annotation, file)
        if int(raw_HW.max()) > ADE_CLASSES:
            raise UserError(f"{annotation} has class {int(raw_HW.max())}: SceneParse150 has 0 to {ADE_CLASSES}")
        image_3HW = read_image(file)
        check_size(annotation, raw_HW, image_3HW)
        return image_3HW, torch.where(raw_HW == 0, IGNORED, raw_HW - 1).byte(), None

    def _annotation(self, file: Path) -> Path:
        return self.root / "annotations" / self.split / f"{file.stem}.png"


def ade20k_images(config: SourceConfig) -> list[Path]:
    """List the images of a source in SceneParse150, in the order of the hashes of their names."""
    folder = Path(str(config.ade20k)).expanduser() / "images" / config.split
    files = sorted(folder.glob("*.jpg"), key=lambda file: _hash(file.stem))
    return files[config.skip :][: config.limit]


class Nyuv2(Reader):
    """nyu_depth_v2_labeled.mat: depths in metres, within Eigen's crop if asked for; by the official split if that is given.

    Raises:
        UserError: a file is missing or has other contents, or no image is left.
    """

    kinds: frozenset[LabelKind] = frozenset({"depth"})
    classes = 0

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        with self._opened() as file:
            images = len(file["images"])
        self.numbers = nyuv2_numbers(config, images)
        if not self.numbers:
            raise UserError(f"{config.nyuv2}: no images are left after skip={config.skip}")
        self.apart(f"{config.nyuv2}/{self.numbers[0]}", len(self.numbers))

    def read(self, index: int) -> tuple[Tensor, None, Tensor]:
        number = self.numbers[index]
        with self._opened() as file:  # stored column by column
            image_3HW = torch.from_numpy(file["images"][number]).transpose(1, 2)
            depth_HW = torch.from_numpy(file["depths"][number]).float().transpose(0, 1)
        if self.config.eigen_crop and depth_HW.shape == (480, 640):
            kept_HW = torch.zeros_like(depth_HW)
            kept_HW[_EIGEN] = depth_HW[_EIGEN]
            depth_HW = kept_HW
        return image_3HW, None, depth_HW.half()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        try:
            import h5py
        except ImportError:
            raise UserError('reading NYUv2 needs the h5py package: pip install "vpretrain[vision]"') from None
        try:
            with h5py.File(Path(str(self.config.nyuv2)).expanduser(), "r") as file:
                yield file
        except (OSError, KeyError) as error:
            kind = Missing if isinstance(error, FileNotFoundError) else UserError
            raise kind(f"cannot read {self.config.nyuv2}: {error}; nyuv2 names nyu_depth_v2_labeled.mat") from None


def nyuv2_numbers(config: SourceConfig, images: int) -> list[int]:
    """List the numbers of a source's images in the file, from 0: those of an official split in the order of their hashes.

    Raises UserError for an unreadable split.
    """
    if config.splits is None:
        return list(range(images))[config.skip :][: config.limit]
    from scipy.io import loadmat

    try:
        found = loadmat(Path(config.splits).expanduser())
        train, test = ({int(number) for number in found[name].flatten()} for name in ("trainNdxs", "testNdxs"))
    except Exception as error:  # scipy raises many kinds of errors for other files
        raise UserError(
            f"cannot read {config.splits}: {first_line(error)}; splits names NYUv2's official splits.mat"
        ) from None
    wrong = sorted(number for number in train | test if not 1 <= number <= images)
    if wrong:
        raise UserError(
            f"{config.splits} names image {wrong[0]}, and {config.nyuv2} has 1 to {images}: another file's split"
        )
    if shared := train & test:
        raise UserError(
            f"{config.splits} has image {min(shared)} in both trainNdxs and testNdxs: give NYUv2's official splits.mat"
        )
    numbers = [number - 1 for number in (test if config.split == "test" else train)]  # MATLAB counts from 1
    numbers.sort(key=lambda number: _hash(str(number)))  # in the file, images of one room follow one another
    return numbers[config.skip :][: config.limit]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def read_image(file: Path | IO[bytes], name: str | None = None) -> Tensor:
    """Read an image as uint8 [3, H, W]. Raises as `readable`."""
    return _read(file, "image", name or str(file), as_tensor)


def read_classes(file: Path, image_file: Path) -> Tensor:
    """Read a map of classes [H, W], upright like its image. Raises as `readable`, and UserError if it holds colours."""
    array = _read_labels(file, "map of classes", image_file)
    if array.ndim != 2:
        raise UserError(f"{file} is no map of classes but an image of {array.shape[2]} channels: give one channel")
    return array


def read_depths(file: Path, image_file: Path) -> Tensor:
    """Read a map of depths [H, W], whole millimetres, upright like its image. Raises as `readable`."""
    return _read_labels(file, "map of depths", image_file)


def check_size(file: Path, map_HW: Tensor, image_3HW: Tensor) -> None:
    """Raise UserError if a map of labels has another size than its image."""
    if image_3HW.shape[1:] != map_HW.shape:
        ours, theirs = (f"{width} x {height}" for height, width in (map_HW.shape, image_3HW.shape[1:]))
        raise UserError(f"{file} has {ours} pixels and its image {theirs}: give them the same size")


@contextlib.contextmanager
def readable(kind: str, name: str) -> Iterator[None]:
    """Raise errors of one line, which name the image, in place of Pillow's.

    Args:
        kind: what it should be, e.g. "image".
        name: of the image.

    Raises:
        Unreadable: it is none, broken, or implausibly large.
        UserError: there is no such file, or the machine cannot read it.
    """
    from PIL import UnidentifiedImageError

    what = f"cannot read the {kind} {name}"
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except UserError as error:
        raise Unreadable(f"{what}: {error}", name, str(error)) from None
    except Exception as error:  # Pillow raises many kinds for broken files, and one of its own for decompression bombs
        if isinstance(error, OSError) and error.errno is not None:  # of the system; Pillow's own have none
            raise UserError(f"{what}: {error}; remove or replace it") from None
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):  # whose message differs from process to process
            reason = "it has no format that Pillow knows"
        raise Unreadable(f"{what}: {reason}; remove or replace it", name, reason) from None


def _read_labels(file: Path, kind: str, image_file: Path) -> Tensor:
    stored = _read(image_file, "image", str(image_file), lambda image: (stored_size(image), orientation_of(image)))

    def convert(labels: PilImage) -> Tensor:
        # Eight bits of millimetres would be depths up to 25 cm: surely something else.
        if kind == "map of depths" and not labels.mode.startswith("I"):
            raise UserError(f"it has mode {labels.mode}, and depths are millimetres in a PNG file of 16 bits")
        return labels_as_tensor(labels, *stored)

    return _read(file, kind, str(file), convert)


def _read(file: Path | IO[bytes], kind: str, name: str, convert: Callable[[PilImage], Item]) -> Item:
    from PIL import Image

    with readable(kind, name), Image.open(file) as image:
        return convert(image)
