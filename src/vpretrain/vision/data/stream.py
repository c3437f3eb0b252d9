"""The unlabeled stream: images in a fixed order, and DINO's crops of them, the same for every arm.

Shapes: V views, B images, H x W pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.errors import UserError
from vpretrain.order import Shuffled
from vpretrain.types import Json
from vpretrain.vision.config import StreamConfig
from vpretrain.vision.data.source import Images, open_images
from vpretrain.vision.model.batch import ViewBatch

_Range = tuple[float, float]


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
        self._sources = [open_images(source) for source in config.sources]
        self._where = [(source, i) for source in self._sources for i in range(len(source))]
        count = len(self._where)
        if count < config.batch_size:
            raise UserError(f"the stream has {count} images: fewer than stream.batch_size={config.batch_size}")
        self._order = Shuffled(count, str(seed))
        for source in self._sources:
            self._image(source, 0)  # finds sizes that never fit before the long run

    def next(self) -> list[ViewBatch]:
        """Return the micro-batches of one learner step: `accumulation` times batch_size / processes images."""
        return [self._batch() for _ in range(self.config.accumulation)]

    def state_dict(self) -> Json:
        """Return the cursor."""
        return {"batches_drawn": self.batches_drawn}

    @staticmethod
    def merge(states: Sequence[Json]) -> Json:
        """Return the whole stream's cursor from those of all processes, which are equal."""
        assert all(state == states[0] for state in states), "the processes are not equally far"
        return states[0]

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor: the batches that follow are the same bit for bit."""
        self.batches_drawn = state["batches_drawn"]

    def sample(self, images: int) -> ViewBatch:
        """Return the first few images, in crops that no learner step uses: always the same, in all processes."""
        chosen = [self._where[self._order[i]] for i in range(min(images, len(self._where)))]
        global_VB3HW, local_VB3HW = self._crops(-1, 0, chosen)
        keys = tuple(source.key(i) for source, i in chosen)
        return ViewBatch(global_VB3HW, local_VB3HW, keys, tuple(range(len(keys))), len(keys), self.config.local_views)

    def _batch(self) -> ViewBatch:
        number, size, shards = self.batches_drawn, self.config.batch_size, self.config.shards
        self.batches_drawn += 1
        chosen = [self._where[self._order[number * size + i]] for i in range(size)]
        # Shard j holds every shards-th image from the j-th on. It is augmented as a whole, even if only some are needed.
        read = {j: range(j, size, shards) for j in sorted({i % shards for i in self._rows})}
        views = [self._crops(number, j, [chosen[i] for i in places]) for j, places in read.items()]
        made = {place: index for index, place in enumerate(itertools.chain(*read.values()))}
        own = [made[i] for i in self._rows]
        global_VB3HW, local_VB3HW = (torch.cat(parts, dim=1)[:, own] for parts in zip(*views, strict=True))
        keys = tuple(source.key(i) for source, i in (chosen[place] for place in self._rows))
        seed = zlib.crc32(f"{self.seed}/{number}/masks".encode())
        batch = ViewBatch(global_VB3HW, local_VB3HW, keys, tuple(self._rows), size, self.config.local_views, seed=seed)
        return batch.to(self.device)

    def _crops(self, number: int, shard: int, chosen: Sequence[tuple[Images, int]]) -> tuple[Tensor, Tensor]:
        images = [self._image(source, i) for source, i in chosen]
        seed = f"{self.seed}/{number}" + (f"/{shard}" if self.config.shards > 1 else "")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(zlib.crc32(seed.encode()))
            return crops(images, self.config)

    def _image(self, source: Images, index: int) -> Tensor:
        image_3HW, crop = source[index], self.config.global_size
        height, width = image_3HW.shape[1:]
        if min(height, width) < crop:
            raise UserError(
                f"the image {source.key(index)} of {width} x {height} pixels is smaller than a crop: remove it, or lower "
                f"stream.global_size={crop}"
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
                K.RandomSolarize(0.5, 0.0, p=solarise),
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
