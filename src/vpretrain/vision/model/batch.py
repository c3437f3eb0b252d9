"""Batches of views. Shapes: V views, B pictures, H x W pixels, D the backbone's width, h x w patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vpretrain.method.protocols import with_tensors


@dataclass(frozen=True)
class ViewBatch:
    """Crops of unlabeled pictures, augmented, in [0, 1].

    Attributes:
        global_VB3HW: the global crops: the only ones that a designer changes.
        local_VB3HW: the local crops; V may be 0.
        keys: identities of the pictures.
        places: their numbers in the whole micro-batch, which several processes may share.
        whole: pictures of the whole micro-batch.
        mask_VB1HW: the mask through which the global crops are seen, if any.
        unmasked_VB3HW: the global crops as they were, where a mask has changed them.
        number: of the draw; seeds a control's random masks, and I-JEPA's blocks.
        prepared: what a learner has computed of them already for a meta step (see `VisionLearner.prepare`).
    """

    global_VB3HW: Float[Tensor, "V B 3 H W"]
    local_VB3HW: Float[Tensor, "Vl B 3 Hl Wl"]
    keys: tuple[str, ...]
    places: tuple[int, ...]
    whole: int
    mask_VB1HW: Float[Tensor, "V B 1 H W"] | None = None
    unmasked_VB3HW: Float[Tensor, "V B 3 H W"] | None = None
    number: int = 0
    prepared: Any = None

    @property
    def plain_VB3HW(self) -> Float[Tensor, "V B 3 H W"]:
        """The global crops without any mask."""
        return self.global_VB3HW if self.unmasked_VB3HW is None else self.unmasked_VB3HW

    @property
    def places_VB(self) -> list[int]:
        """Number of each global crop among those of the whole micro-batch: draws for all, of which these are taken, do not
        depend on how pictures are shared out, or on how many of them a meta batch has."""
        return [view * self.whole + place for view in range(len(self.global_VB3HW)) for place in self.places]

    @property
    def weight(self) -> float:
        """The loss is averaged over pictures."""
        return float(len(self.keys))

    @property
    def tokens(self) -> int:
        """Pictures: what a throughput counts."""
        return len(self.keys)

    def restrict(self, *, domain: str | None = None, rows: int) -> ViewBatch:
        """The global crops of the first `rows` pictures: a meta batch. Pictures have no domain."""
        return self.globals_of(slice(rows))

    def globals_of(self, pictures: slice) -> ViewBatch:
        """The global crops of some pictures.

        Local crops are left out: they do not depend on the designer, and the teacher's targets are constant in phi.
        """
        return replace(
            self,
            global_VB3HW=self.global_VB3HW[:, pictures],
            local_VB3HW=self.local_VB3HW[:0, pictures],
            keys=self.keys[pictures],
            places=self.places[pictures],
        )

    def to(self, device: torch.device | str) -> ViewBatch:
        """The same batch on another device."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ViewBatch:
        """The same batch where a GPU can fetch it from while it computes."""
        return with_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Labelled:
    """Pictures with dense labels; as a pool they are uint8, uint8 and fp16, and `to` makes a batch of them.

    Attributes:
        image_B3HW: a batch in [0, 1].
        label_BHW: class of every pixel; IGNORED where it has none.
        depth_BHW: metres; 0 where unknown.
        scene_B: which pictures show the same scene.
        category_B: class of the main object; -1 where unknown.
        classes: how many classes there are; 0 without labels.
    """

    image_B3HW: Shaped[Tensor, "B 3 H W"]
    label_BHW: Shaped[Tensor, "B H W"]
    depth_BHW: Float[Tensor, "B H W"]
    scene_B: Int[Tensor, " B"]
    category_B: Int[Tensor, " B"]
    classes: int

    def __len__(self) -> int:
        return len(self.image_B3HW)

    def __getitem__(self, index: Any) -> Labelled:
        return replace(self, **{name: tensor[index] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Labelled:
        """A batch to compute with: pictures as fp32 in [0, 1], classes as integers, depths as fp32, on a device."""
        there = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        there["image_B3HW"] = there["image_B3HW"].float() / 255
        there["label_BHW"], there["depth_BHW"] = there["label_BHW"].long(), there["depth_BHW"].float()
        return replace(self, **there)

    def tensors(self) -> dict[str, Any]:
        """All but the number of classes."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


IGNORED = 255  # label of pixels that belong to no class
