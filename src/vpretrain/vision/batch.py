"""Batches of views. Shapes: V views, B pictures, H x W pixels, D the backbone's width, h x w patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """Crops of unlabeled pictures, augmented, in [0, 1].

    Attributes:
        global_VB3HW: the global crops: the only ones that a designer changes.
        local_VB3HW: the local crops; V may be 0.
        keys: identities of the pictures.
        mask_VB1HW: the mask through which the global crops are seen, if any.
        number: of the draw; seeds a control's random masks.
        prepared: what a learner has computed of them already for a meta step (see `VisionLearner.prepare`).
    """

    global_VB3HW: Float[Tensor, "V B 3 H W"]
    local_VB3HW: Float[Tensor, "Vl B 3 Hl Wl"]
    keys: tuple[str, ...]
    mask_VB1HW: Float[Tensor, "V B 1 H W"] | None = None
    number: int = 0
    prepared: Any = None

    @property
    def weight(self) -> float:
        """The loss is averaged over pictures."""
        return float(len(self.keys))

    @property
    def tokens(self) -> int:
        """Pictures: what a throughput counts."""
        return len(self.keys)

    def restrict(self, *, domain: str | None = None, rows: int) -> ViewBatch:
        """The global crops of the first `rows` pictures: a meta batch. Pictures have no domain.

        Local crops are left out: they do not depend on the designer, and the teacher's targets are constant in phi.
        """
        return replace(
            self,
            global_VB3HW=self.global_VB3HW[:, :rows],
            local_VB3HW=self.local_VB3HW[:0, :rows],
            keys=self.keys[:rows],
        )

    def to(self, device: torch.device | str) -> ViewBatch:
        """The same batch on another device."""
        return replace(self, global_VB3HW=self.global_VB3HW.to(device), local_VB3HW=self.local_VB3HW.to(device))


@dataclass(frozen=True)
class Labelled:
    """Pictures with dense labels.

    Attributes:
        image_B3HW: in [0, 1].
        label_BHW: class of every pixel; IGNORED is none.
        depth_BHW: metres; 0 where unknown.
        scene_B: which pictures show the same scene.
        category_B: class of the main object.
    """

    image_B3HW: Float[Tensor, "B 3 H W"]
    label_BHW: Int[Tensor, "B H W"]
    depth_BHW: Float[Tensor, "B H W"]
    scene_B: Int[Tensor, " B"]
    category_B: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.image_B3HW)

    def __getitem__(self, index: Any) -> Labelled:
        return Labelled(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device | str) -> Labelled:
        """The same on another device."""
        return Labelled(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


IGNORED = 255  # label of pixels that belong to no class
