"""`vpretrain init` for vision: a recipe over a folder of images, steered by a labelled set."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vpretrain.errors import Unreadable, UserError
from vpretrain.plain import noted, quoted
from vpretrain.vision.config import SourceConfig, StreamConfig
from vpretrain.vision.data.readers import ade20k_images
from vpretrain.vision.data.resize import Shape
from vpretrain.vision.data.source import Images, Pool, images_in, is_archive, open_images
from vpretrain.vision.model.load import load_config

_SHOWN = 2  # images of the stream
_MEASURED = 200  # images of the stream whose size is looked at
_FEWEST = 5  # images that can be divided among the roles
_GLOBAL, _LOCAL = 224, 96  # pixels per side of a crop, unless the images are smaller


@dataclass(frozen=True)
class _Labelled:
    """A labelled set.

    Attributes:
        kind: the setting that names it.
        path: its own.
        count: its images, without those of a test split.
        has_test: whether it has a test split.
        splits: the file that names the images of NYUv2's splits.
    """

    kind: str
    path: str
    count: int
    has_test: bool
    splits: str | None = None

    def part(self, low: float, high: float) -> str:
        """A source of its images from one fraction to another, as YAML."""
        first, last = round(low * self.count), round(high * self.count)
        return f"[{{{self._split('train')}, skip: {first}, limit: {last - first}}}]"

    @property
    def test(self) -> str:
        """A source of its test split, as YAML."""
        return f"[{{{self._split('test')}}}]"

    def _split(self, split: str) -> str:
        words = [f"{self.kind}: {quoted(self.path)}"]
        if self.splits is not None:
            words += [f"splits: {quoted(self.splits)}", f"split: {split}"]
        elif split == "test":
            words.append("split: validation")
        return ", ".join(words)


def reads(stream: str) -> bool:
    """Whether a path holds images: a folder, or archives."""
    folder = Path(stream).expanduser()
    return bool(glob.glob(str(folder))) if is_archive(stream) else folder.is_dir() and bool(images_in(folder))


def draft(name: str, learner: str, stream: str, feedback: str, evaluation: str | None) -> str:
    """Return a recipe with comments, and print what is found of every role.

    Args:
        name: of the runs.
        learner: hub name or directory.
        stream: a folder or archives of images.
        feedback, evaluation: SceneParse150's folder, or NYUv2's file with splits.mat beside it; without an evaluation the
            feedback's set is divided.

    Raises:
        UserError: the learner or the images cannot be read, or there are too few.
    """
    config = load_config(learner)
    images = open_images(SourceConfig(path=stream))
    shapes = _shapes(images)
    side = min(map(min, shapes.values()))
    steering = _labelled(feedback)
    held_out = steering if evaluation is None else _labelled(evaluation)
    if held_out.kind == "nyuv2" and not held_out.has_test:
        raise UserError(
            f"{held_out.path} does not say which of its images are for tests: put NYUv2's official splits.mat beside it, "
            "or give --evaluation another set"
        )
    _show(stream, len(images), shapes, steering, held_out)
    # Roles on one set without a test split divide it; the probes may be fitted on the images of the heads.
    shared = held_out.path == steering.path and not steering.has_test
    heads, meta = (0.4, 0.6) if shared else (0.7, 1.0)
    probes = 0.4 if shared else 1.0 if held_out.has_test else 0.5
    batch_size = min(len(images), StreamConfig.model_fields["batch_size"].default)

    def fitting(size: int) -> int:
        """The largest multiple of the learner's patch up to a size and to the images' own."""
        return max(1, min(size, side) // config.patch_size) * config.patch_size

    size, ijepa = fitting(_GLOBAL), config.model_type == "ijepa"
    lines = [
        "modality: vision",
        noted(f"name: {quoted(name)}", f"runs are written to runs/{name}"),
        "learner:",
        f"  name: {quoted(learner)}",
        noted("  # precision: bf16", "on a GPU, or a CPU with bf16 instructions"),
        *(["  objective: ijepa"] if ijepa else []),
        noted("stream:", "what the learner trains on: images without labels"),
        f"  sources: [{{path: {quoted(stream)}}}]",
        noted(f"  batch_size: {batch_size}", "images per step"),
        noted(f"  global_size: {size}", "pixels per side of a crop: a multiple of the learner's patch"),
        f"  local_size: {fitting(_LOCAL)}",
        *(["  global_views: 1", "  local_views: 0", "  colour: false"] if ijepa else []),
        noted("feedback:", "labels: they steer, and are never trained on"),
        noted(f"  heads: {steering.part(0, heads)}", "light heads are fitted on these"),
        noted(f"  meta: {steering.part(heads, meta)}", "and these give the direction"),
        f"  segmentation: {int(steering.kind == 'ade20k')}",
        f"  depth: {int(steering.kind == 'nyuv2')}",
        f"  size: {size}",
        noted("budget: {minutes: 30}", "of training, for each arm"),
        noted("evaluation:", "probes on the frozen backbone, before and after"),
        f"  train: {held_out.part(0, probes)}",
        f"  test: {held_out.test if held_out.has_test else held_out.part(meta if shared else probes, 1)}",
        f"  size: {size}",
    ]
    return "\n".join(lines) + "\n"


def _labelled(path: str) -> _Labelled:
    found = Path(path).expanduser()
    splits: str | None = None
    if found.suffix == ".mat":
        source, kind, test = SourceConfig(nyuv2=path), "nyuv2", found.with_name("splits.mat").is_file()
        if test:
            splits = str(Path(path).with_name("splits.mat"))
            source = SourceConfig(nyuv2=path, splits=splits, split="train")
    elif (found / "annotations").is_dir():
        source, kind = SourceConfig(ade20k=path), "ade20k"
        test = bool(ade20k_images(source.model_copy(update={"split": "validation"})))
    else:
        raise UserError(
            f"{path} has no labels that vision reads: give SceneParse150's folder (images/ and annotations/), or "
            "nyu_depth_v2_labeled.mat"
        )
    count = len(Pool([source], None))
    if count < _FEWEST:
        raise UserError(
            f"{path} has {count} labelled images: give {_FEWEST} or more, which can be divided among the roles"
        )
    return _Labelled(kind, path, count, test, splits)


def _shapes(images: Images) -> dict[str, Shape]:
    """Return height and width of the first images that can be read, by key: a run skips the others. Raises if none can be."""
    shapes: dict[str, Shape] = {}
    for index in range(min(_MEASURED, len(images))):
        with contextlib.suppress(Unreadable):
            _, height, width = images[index].shape
            shapes[images.key(index)] = height, width
    if not shapes:
        images[0]  # says what is wrong with it
    return shapes


def _show(stream: str, count: int, shapes: Mapping[str, Shape], steering: _Labelled, held_out: _Labelled) -> None:
    console = Console()
    shown = [f"  {key}: {width} x {height}" for key, (height, width) in shapes.items()][:_SHOWN]
    console.print(Text("\n".join([f"\nstream: {stream}, {count:,} images", *shown])), soft_wrap=True)
    for role, one in (("feedback", steering), ("evaluation", held_out)):
        console.print(Text(f"\n{role}: {one.path}, {one.count:,} labelled images ({one.kind})"), soft_wrap=True)
