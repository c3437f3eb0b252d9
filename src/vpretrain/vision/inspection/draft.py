"""`vpretrain init` for vision: a recipe over a folder of images, steered by a labelled set."""

from __future__ import annotations

import contextlib
import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from torch import Tensor

from vpretrain.console import steady
from vpretrain.errors import Unreadable, UserError
from vpretrain.modality import Draft
from vpretrain.plain import counted, noted, quoted
from vpretrain.vision.config import FeedbackConfig, SourceConfig, StreamConfig
from vpretrain.vision.data.image_files import folder_per_class, images_in
from vpretrain.vision.data.own import own_images
from vpretrain.vision.data.readers import ade20k_images, read_classes
from vpretrain.vision.data.resize import Shape
from vpretrain.vision.data.source import Images, Pool, check_disjoint, is_archive, open_images
from vpretrain.vision.inspection.contact_sheet import SIDE, contact_sheet, square
from vpretrain.vision.installed import check_installed
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.heads import LabelKind
from vpretrain.vision.model.load import load_config

_SHOWN = 2  # images of each role
_MEASURED = 200  # images of the stream whose size is looked at
_FEWEST = 5  # images that can be divided among the roles
_GLOBAL, _LOCAL = 224, 96  # pixels per side of a crop, unless the images are smaller
_SEEDS = {"heads": 1, "meta": 2, "train": 3, "test": 4}  # of generated scenes, which no two roles may share
_SECTIONS = {"heads": "feedback", "meta": "feedback", "train": "evaluation", "test": "evaluation"}  # of a recipe
_BLOCKS = 4  # of the learner, in S: the default, of a learner that has as many
_ANY = 2  # classes of a source whose classes are not yet counted


@dataclass(frozen=True)
class _Set:
    """A labelled set: the user's name for it, its source, its number of images, and whether it has a test split of its own."""

    origin: str
    source: SourceConfig
    count: int
    kinds: frozenset[LabelKind]
    has_test: bool

    def part(self, role: str, low: float, high: float) -> SourceConfig:
        """A source of its images from one fraction to another; of generated scenes, as many of the role's own."""
        if self.source.scenes is not None:
            return self.source.model_copy(update={"seed": _SEEDS[role]})
        first, last = round(low * self.count), round(high * self.count)
        return self.source.model_copy(update={"skip": first, "limit": last - first})

    @property
    def test(self) -> SourceConfig:
        """A source of its test split."""
        return self.source.model_copy(update={"split": "validation" if self.source.nyuv2 is None else "test"})


def reads(stream: str) -> bool:
    """Whether a path holds images: a folder, or archives."""
    folder = Path(stream).expanduser()
    return bool(glob.glob(str(folder))) if is_archive(stream) else folder.is_dir() and bool(images_in(folder))


def draft(
    name: str, learner: str, stream: str, feedback: str, evaluation: str | None, given: Sequence[Mapping[str, str]]
) -> Draft:
    """Return a recipe with comments, what is found of every role, and a sheet of images of each.

    Args:
        name: of the runs.
        learner: hub name or directory.
        stream: a folder or archives of images.
        feedback, evaluation: a folder of own labelled images, SceneParse150's folder, NYUv2's file with splits.mat beside it,
            or scenes:N; without an evaluation the feedback's set is divided.
        given: templates, which images have none of.

    Raises:
        UserError: packages are missing, the learner or the images cannot be read, or there are too few.
    """
    if given:
        raise UserError(f"{stream} holds images: leave out --text, --prompt and --response")
    check_installed()
    config = load_config(learner)
    images = open_images(SourceConfig(path=stream))
    shapes = _shapes(images)
    side = min(map(min, shapes.values()))
    steering = _labelled(feedback)
    held_out = steering if evaluation is None else _labelled(evaluation)
    if held_out.source.nyuv2 is not None and not held_out.has_test:
        raise UserError(
            f"{held_out.origin} does not say which of its images are for tests: put NYUv2's official splits.mat beside it, "
            "or give --evaluation another set"
        )
    # Roles on one set without a test split divide it; the probes may be fitted on the images of the heads.
    shared = held_out.origin == steering.origin and not steering.has_test
    heads, meta = (0.4, 0.6) if shared else (0.7, 1.0)
    probes = 0.4 if shared else 1.0 if held_out.has_test else 0.5
    parts = {
        "heads": steering.part("heads", 0, heads),
        "meta": steering.part("meta", heads, meta),
        "train": held_out.part("train", 0, probes),
        "test": held_out.test if held_out.has_test else held_out.part("test", meta if shared else probes, 1),
    }
    check_disjoint({f"{_SECTIONS[role]}.{role}": [source] for role, source in parts.items()})
    batch_size = min(len(images), StreamConfig.model_fields["batch_size"].default)
    # Those of one batch give the direction, those of the next judge it.
    half = (parts["meta"].limit or steering.count) // 2
    fed = min(FeedbackConfig.model_fields["batch_size"].default, max(2, half))
    classes = "segmentation" in steering.kinds
    depths = (
        noted("  depth: 0", "beside classes it gains a little depth, and may cost mIoU") if classes else "  depth: 1"
    )

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
        noted(f"  heads: {_listed(parts['heads'])}", "light heads are fitted on these"),
        noted(f"  meta: {_listed(parts['meta'])}", "and these give the direction"),
        f"  segmentation: {int(classes)}",
        depths,
        noted(f"  batch_size: {fed}", "of these images, per meta update; others judge the direction"),
        f"  size: {size}",
        noted("value:", "the direction of the feedback"),
        noted("  every_steps: 6", "steps per meta update, which takes about as long as a step"),
        noted(f"  subset: last-{min(_BLOCKS, config.num_hidden_layers)}", "blocks over which it is taken"),
        noted("budget: {minutes: 30}", "of training, for each arm"),
        noted("evaluation:", "probes on the frozen backbone, before and after"),
        f"  train: {_listed(parts['train'])}",
        f"  test: {_listed(parts['test'])}",
        f"  size: {size}",
    ]
    sheet = contact_sheet(_first(images), [_first_labelled(parts[role]) for role in ("heads", "test")])
    return Draft("\n".join(lines) + "\n", list(_shown(stream, len(images), shapes, steering, held_out)), sheet)


def _labelled(path: str) -> _Set:
    found, test = Path(path).expanduser(), False
    if generated := re.fullmatch(r"scenes:\s*(\d{1,6})", path):
        source = SourceConfig(scenes=max(1, int(generated[1])), seed=_SEEDS["heads"])
    elif found.suffix == ".mat":
        source, test = SourceConfig(nyuv2=path), found.with_name("splits.mat").is_file()
        if test:
            source = SourceConfig(nyuv2=path, splits=str(Path(path).with_name("splits.mat")), split="train")
    elif (found / "annotations").is_dir():
        source = SourceConfig(ade20k=path)
        test = bool(ade20k_images(source.model_copy(update={"split": "validation"})))
    elif (found / "masks").is_dir():
        source = SourceConfig(labelled=path, classes=_ANY)
        source = source.model_copy(update={"classes": _classes(source)})
    else:
        raise UserError(
            f"{path} has no labels that vision reads{folder_per_class(found)}: give a folder with images/ and masks/, "
            "SceneParse150's (images/ and annotations/), nyu_depth_v2_labeled.mat, or scenes:64 for generated scenes"
        )
    pool = Pool([source], None)
    if len(pool) < _FEWEST:
        raise UserError(
            f"{path} has {counted(len(pool), 'labelled image')}: give {_FEWEST} or more, which can be divided among the roles"
        )
    return _Set(path, source, len(pool), pool.readers[0].kinds, test)


def _classes(source: SourceConfig) -> int:
    """Count the classes of own labelled images: up to the highest in any mask. Raises UserError for what is no mask."""
    folder, most = Path(str(source.labelled)).expanduser(), 0
    files = own_images(source)
    with steady(f"reading {len(files)} masks", len(files), "masks") as done:
        for number, file in enumerate(files):
            mask = (folder / "masks" / file.relative_to(folder / "images")).with_suffix(".png")
            if mask.is_file():  # the set itself says which ones are missing
                class_HW = read_classes(mask, file)
                if len(known := class_HW[class_HW != IGNORED]):
                    most = max(most, int(known.max()))
                if most > IGNORED:
                    raise UserError(
                        f"{mask} has class {most}: masks have up to {IGNORED} classes, from 0 to {IGNORED - 1}"
                    )
            done(number + 1)
    return max(_ANY, most + 1)


def _listed(source: SourceConfig) -> str:
    """A list of one source, as YAML in one line."""
    settings = source.model_dump(exclude_defaults=True)
    return f"[{{{', '.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in settings.items())}}}]"


def _first(images: Images) -> list[Tensor]:
    """Return the first images that can be read, as squares."""
    found: list[Tensor] = []
    for index in range(min(_MEASURED, len(images))):
        with contextlib.suppress(Unreadable):
            found.append(square(images[index]))
        if len(found) == _SHOWN:
            break
    return found


def _first_labelled(source: SourceConfig) -> Labelled:
    pool = Pool([source], (SIDE, SIDE))
    return pool[range(min(_SHOWN, len(pool)))]


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


def _shown(stream: str, count: int, shapes: Mapping[str, Shape], steering: _Set, held_out: _Set) -> Iterator[Text]:
    sizes = [f"  {key}: {width} x {height}" for key, (height, width) in shapes.items()][:_SHOWN]
    yield Text("\n".join([f"\nstream: {stream}, {counted(count, 'image')}", *sizes]))
    for role, one in (("feedback", steering), ("evaluation", held_out)):
        kinds = " and ".join(
            {"segmentation": "classes", "depth": "depths"}[kind] for kind in sorted(one.kinds, reverse=True)
        )
        classes = f" ({one.source.classes} classes)" if one.source.classes is not None else ""
        yield Text(f"\n{role}: {one.origin}, {counted(one.count, 'labelled image')}, {kinds}{classes}{_copies(one)}")


def _copies(one: _Set) -> str:
    """Say how many of own images are left out since others have the same content."""
    if one.source.labelled is None:
        return ""
    left_out = len(images_in(Path(one.source.labelled).expanduser() / "images")) - one.count
    return f"; {left_out:,} copies of them are left out" if left_out else ""
