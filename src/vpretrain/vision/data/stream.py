"""The unlabeled stream: images in a fixed order, and DINO's crops of them, the same for every arm.

Shapes: V views, B images, H x W pixels.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.errors import Unreadable, UserError
from vpretrain.order import Shuffled
from vpretrain.plain import counted
from vpretrain.run.left_out import LeftOut, by_source
from vpretrain.run.skipped import UNREADABLE, Skipped, entries
from vpretrain.types import Json
from vpretrain.vision.config import StreamConfig
from vpretrain.vision.data.source import Images, open_images
from vpretrain.vision.model.batch import ViewBatch

_Range = tuple[float, float]
_Keyed = tuple[str, Tensor]  # an image's key, and the image [3, H, W]
_HOPELESS = 100  # this many images in a row that cannot be read end the run
_TRIED = 10  # images of each source, of which one must be usable


class VisionStream:
    """The unlabeled stream D_u. Every batch, augmentation included, depends only on the seed and a counter.

    Args:
        config: sources and crops.
        seed: seed of order and augmentation.
        rank: rank of this process, from 0.
        processes: number of processes. The images of a micro-batch are split over them, and do not depend on their number.

    Raises:
        UserError: there are no images, or fewer than a batch; or a micro-batch cannot be split evenly over the processes.
    """

    def __init__(self, config: StreamConfig, *, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.config, self.seed = config, seed
        self._rows = config.rows_for(rank, processes)
        self.device: torch.device | str = "cpu"
        self.batches_drawn = 0
        self._origins = [source.origin for source in config.sources]
        self._sources = [open_images(source) for source in config.sources]
        self._where = [(number, i) for number, source in enumerate(self._sources) for i in range(len(source))]
        count = len(self._where)
        if count < config.batch_size:
            raise UserError(
                f"the stream has {counted(count, 'image')}: fewer than stream.batch_size={config.batch_size}"
            )
        self._order = Shuffled(count, str(seed))
        # Shard j holds every shards-th image from the j-th on. It is augmented as a whole, even if only some are needed.
        self._places = {
            j: range(j, config.batch_size, config.shards) for j in sorted({i % config.shards for i in self._rows})
        }
        self._skipped = {j: [Skipped(origin, config) for origin in self._origins] for j in self._places}
        self._left_out = {j: [0 for _ in self._origins] for j in self._places}
        for number in range(len(self._sources)):
            self._try(number)

    def left_out(self, cursor: Json) -> LeftOut:
        """Count the images that were met and could not be read until a cursor, of this process or merged, by origin."""
        found = [pair for shard in cursor["shards"].values() for pair in zip(self._origins, shard, strict=True)]
        return by_source((origin, {UNREADABLE: of["left_out"]}) for origin, of in found)

    def skipped(self, cursor: Json) -> list[Json]:
        """List these images until a merged cursor, see `run.skipped`."""
        return entries(self._origins, cursor["shards"])

    def next(self) -> list[ViewBatch]:
        """Return the micro-batches of one learner step: `accumulation` times batch_size / processes images."""
        return [self._batch() for _ in range(self.config.accumulation)]

    def state_dict(self) -> Json:
        """Return the cursor: the number of batches drawn, and what was skipped in each shard that is read here."""
        shards = {
            str(j): [
                {"left_out": count, "skipped": skipped.state_dict()}
                for count, skipped in zip(self._left_out[j], self._skipped[j], strict=True)
            ]
            for j in self._places
        }
        return {"batches_drawn": self.batches_drawn, "shards": shards}

    @staticmethod
    def merge(states: Sequence[Json]) -> Json:
        """Merge the cursors of all processes, after the same number of steps, into the whole stream's."""
        shards: Json = {}
        for state in states:
            assert state["batches_drawn"] == states[0]["batches_drawn"], "the processes are not equally far"
            for shard, sources in state["shards"].items():
                assert shards.setdefault(shard, sources) == sources, f"two processes disagree on shard {shard}"
        return {"batches_drawn": states[0]["batches_drawn"], "shards": shards}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor, of this process or merged: the batches that follow are the same bit for bit."""
        self.batches_drawn = state["batches_drawn"]
        for j in self._places:
            for number, of in enumerate(state["shards"][str(j)]):
                self._left_out[j][number] = of["left_out"]
                self._skipped[j][number].load_state_dict(of["skipped"])

    def sample(self, images: int) -> ViewBatch:
        """Return the first few images, in crops that no learner step uses: always the same, in all processes."""
        chosen = [self._readable(i)[0] for i in range(min(images, len(self._where)))]
        global_VB3HW, local_VB3HW = self._crops(-1, 0, [image for _, image in chosen])
        keys = tuple(key for key, _ in chosen)
        return ViewBatch(global_VB3HW, local_VB3HW, keys, tuple(range(len(keys))), len(keys), self.config.local_views)

    def _batch(self) -> ViewBatch:
        number, size = self.batches_drawn, self.config.batch_size
        self.batches_drawn += 1
        read: list[str] = []
        views = []
        for j, places in self._places.items():
            chosen = [self._drawn(number * size + i, j) for i in places]
            read += [key for key, _ in chosen]
            views.append(self._crops(number, j, [image for _, image in chosen]))
        made = {place: index for index, place in enumerate(itertools.chain(*self._places.values()))}
        own = [made[i] for i in self._rows]
        global_VB3HW, local_VB3HW = (torch.cat(parts, dim=1)[:, own] for parts in zip(*views, strict=True))
        keys = tuple(read[index] for index in own)
        seed = zlib.crc32(f"{self.seed}/{number}/masks".encode())
        batch = ViewBatch(global_VB3HW, local_VB3HW, keys, tuple(self._rows), size, self.config.local_views, seed=seed)
        return batch.to(self.device)

    def _crops(self, number: int, shard: int, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        seed = f"{self.seed}/{number}" + (f"/{shard}" if self.config.shards > 1 else "")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(zlib.crc32(seed.encode()))  # not those of GPUs, which nothing restores
            return crops(images, self.config)

    def _drawn(self, draw: int, shard: int) -> _Keyed:
        """Return the image of a draw, and count it. Raises as `Skipped.met`."""
        found, fault = self._readable(draw)
        source, _ = self._where[self._order[draw]]
        self._skipped[shard][source].met(fault, again=draw >= len(self._where))
        self._left_out[shard][source] += fault is not None
        return found

    def _readable(self, draw: int) -> tuple[_Keyed, Unreadable | None]:
        """Return the image of a draw; in place of one that cannot be read another, and why.

        The other one depends on the draw alone, so that no later draw moves, and every process can tell it by itself.
        """
        try:
            return self._image(*self._where[self._order[draw]]), None
        except Unreadable as error:
            fault = error
        if self.config.on_error == "stop":
            raise fault
        others = random.Random(f"{self.seed}/{draw}/instead")
        for _ in range(_HOPELESS):
            with contextlib.suppress(Unreadable):
                return self._image(*self._where[others.randrange(len(self._where))]), fault
        raise UserError(f"{_HOPELESS} images in a row cannot be read, the first: {fault}")

    def _try(self, number: int) -> None:
        """Read an image of a source: finds what fits none of them before the long run. Raises UserError."""
        errors = []
        tried = 1 if self.config.on_error == "stop" else _TRIED
        for index in range(min(tried, len(self._sources[number]))):
            try:
                self._image(number, index)
                return
            except Unreadable as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _image(self, number: int, index: int) -> _Keyed:
        source = self._sources[number]
        return source.key(index), read_for_crops(source, self.config.global_size, index)


def read_for_crops(source: Images, crop: int, index: int) -> Tensor:
    """Read an image [3, H, W] for crops of so many pixels per side. Raises as `readable`; Unreadable also if it is smaller."""
    image_3HW, key = source[index], source.key(index)
    height, width = image_3HW.shape[1:]
    if min(height, width) < crop:
        raise Unreadable(
            f"the image {key} of {width} x {height} pixels is smaller than a crop: remove it, or lower "
            f"stream.global_size={crop}",
            key,
            f"its {width} x {height} pixels are smaller than a crop",
        )
    return image_3HW


def crops(images: list[Tensor], config: StreamConfig) -> tuple[Tensor, Tensor]:
    """Return DINO's global and local crops [V, B, 3, H, W] of uint8 images; draws from torch's global random state."""
    side = min(max(min(image.shape[1:]) for image in images), _finest(config))
    images_B3HW = torch.stack([_square(image, side) for image in images])
    *globals_, local = augmentations(config)
    global_views = [globals_[view % 2](images_B3HW) for view in range(config.global_views)]
    local_views = [local(images_B3HW) for _ in range(config.local_views)]
    empty = images_B3HW.new_zeros(0, len(images), 3, config.local_size, config.local_size)
    return torch.stack(global_views).clamp(0, 1), torch.stack(local_views).clamp(0, 1) if local_views else empty


@functools.lru_cache
def _augmentations(
    global_size: int, global_scale: _Range, local_size: int, local_scale: _Range, colour: bool
) -> tuple[nn.Module, nn.Module, nn.Module]:
    from kornia import augmentation as K

    def recipe(size: int, scale: _Range, blur: float, solarise: float) -> nn.Module:
        steps = [K.RandomResizedCrop((size, size), scale=scale, resample="bilinear"), K.RandomHorizontalFlip()]
        if colour:
            steps += [
                K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                K.RandomGrayscale(p=0.2),
                K.RandomGaussianBlur((9, 9), (0.1, 2.0), p=blur),
                K.RandomSolarize((0.5, 0.5), 0.0, p=solarise),  # a number would be the half-width of a range
            ]
        return K.AugmentationSequential(*steps, data_keys=["input"])

    return (
        recipe(global_size, global_scale, 1.0, 0.0),
        recipe(global_size, global_scale, 0.1, 0.2),
        recipe(local_size, local_scale, 0.5, 0.0),
    )


def augmentations(config: StreamConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Augmentations (of BYOL and DINO) for the first global, the second global and the local crops; batched, one per image."""
    return _augmentations(config.global_size, config.global_scale, config.local_size, config.local_scale, config.colour)


def _finest(config: StreamConfig) -> int:
    """Return the image side in pixels at which even the smallest crop is not enlarged: more pixels only take memory."""
    crops = [(config.global_size, config.global_scale)]
    crops += [(config.local_size, config.local_scale)] if config.local_views else []
    return max(math.ceil(size / math.sqrt(smallest)) for size, (smallest, _) in crops)


def _square(image_3HW: Tensor, side: int) -> Tensor:
    """Take a square part of a non-square image, drawn anew each time, so that nothing is distorted; resize it to `side`."""
    height, width = image_3HW.shape[1:]
    short = min(height, width)
    start = int(torch.randint(max(height, width) - short + 1, ())) if height != width else 0
    image_3HW = image_3HW.narrow(1 if height > width else 2, start, short).float() / 255
    if short == side:
        return image_3HW
    return F.interpolate(image_3HW[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
