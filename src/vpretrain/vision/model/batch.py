"""Batches of views. Shapes: V views, B images, H x W pixels, D the backbone's width, h x w patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vpretrain.method.protocols import with_tensors


@dataclass(frozen=True)
class ViewBatch:
    """Augmented crops of unlabeled images, in [0, 1].

    Attributes:
        global_VB3HW: the global crops, the only ones that a designer changes.
        local_VB3HW: the local crops; V may be 0, or not be that of `local_views` where a meta step leaves them out.
        keys: identities of the images.
        places: their indices in the whole micro-batch, which may be split over several processes.
        whole: the number of images in the whole micro-batch.
        local_views: the number of local crops per image that belong to the loss.
        mask_VB1HW: the mask applied to the global crops, if any.
        unmasked_VB3HW: the global crops before masking, if a mask was applied.
        seed: of a control's random masks, of I-JEPA's blocks and of iBOT's hidden patches; from the run's seed and the number
            of the draw.
        prepared: a learner's precomputed results for a meta step (see `VisionLearner.prepare`).
    """

    global_VB3HW: Float[Tensor, "V B 3 H W"]
    local_VB3HW: Float[Tensor, "Vl B 3 Hl Wl"]
    keys: tuple[str, ...]
    places: tuple[int, ...]
    whole: int
    local_views: int = 0
    mask_VB1HW: Float[Tensor, "V B 1 H W"] | None = None
    unmasked_VB3HW: Float[Tensor, "V B 3 H W"] | None = None
    seed: int = 0
    prepared: Any = None

    @property
    def plain_VB3HW(self) -> Float[Tensor, "V B 3 H W"]:
        """The global crops without any mask."""
        return self.global_VB3HW if self.unmasked_VB3HW is None else self.unmasked_VB3HW

    @property
    def places_VB(self) -> list[int]:
        """Index of each global crop within the whole micro-batch. Random draws are made for all crops and indexed by this, so
        they do not depend on how images are split over processes, or on the size of a meta batch."""
        return [view * self.whole + place for view in range(len(self.global_VB3HW)) for place in self.places]

    @property
    def weight(self) -> float:
        """The number of images: the loss is averaged over them."""
        return float(len(self.keys))

    @property
    def units(self) -> int:
        """The number of images, the unit of throughput."""
        return len(self.keys)

    def restrict(self, *, domain: str | None = None, more: Sequence[ViewBatch] = (), rows: int) -> ViewBatch:
        """Return a meta batch: the first `rows` images.

        Images have no domain, and none of `more` are taken: what is hidden is drawn by one seed for a whole micro-batch.
        """
        return self.images(slice(rows))

    def images(self, chosen: slice) -> ViewBatch:
        """Return some of the images."""
        return replace(
            self,
            global_VB3HW=self.global_VB3HW[:, chosen],
            local_VB3HW=self.local_VB3HW[:, chosen],
            keys=self.keys[chosen],
            places=self.places[chosen],
        )

    def without_local(self) -> ViewBatch:
        """Return the same images without their local crops, for passes in which only the designed views vary."""
        return replace(self, local_VB3HW=self.local_VB3HW[:0])

    def to(self, device: torch.device | str) -> ViewBatch:
        """Return the batch on another device."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ViewBatch:
        """Return the batch in pinned memory, from which a GPU can copy while it computes."""
        return with_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Labelled:
    """Images with dense labels. In a pool, images, labels and depths are uint8, uint8 and fp16; `to` makes a batch of them.

    Attributes:
        image_B3HW: images; in a batch in [0, 1].
        label_BHW: class of every pixel; IGNORED where it has none.
        depth_BHW: depth in metres; 0 where unknown.
        scene_B: scene of every image; images of the same scene have the same number.
    """

    image_B3HW: Shaped[Tensor, "B 3 H W"]
    label_BHW: Shaped[Tensor, "B H W"]
    depth_BHW: Float[Tensor, "B H W"]
    scene_B: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.image_B3HW)

    def __getitem__(self, index: Any) -> Labelled:
        return with_tensors(self, lambda tensor: tensor[index])

    @classmethod
    def joined(cls, parts: Sequence[Labelled]) -> Labelled:
        """Return the images of several batches of one size."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})

    def to(self, device: torch.device | str) -> Labelled:
        """Make a batch on a device: images as fp32 in [0, 1], classes as integers, depths as fp32."""
        there = with_tensors(self, lambda tensor: tensor.to(device))
        image_B3HW, depth_BHW = there.image_B3HW.float() / 255, there.depth_BHW.float()
        return replace(there, image_B3HW=image_B3HW, label_BHW=there.label_BHW.long(), depth_BHW=depth_BHW)


IGNORED = 255  # label of pixels that belong to no class
