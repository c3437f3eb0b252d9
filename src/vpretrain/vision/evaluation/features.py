"""Frozen features of images of any proportions. Shapes: B images, D width, h x w patches, H x W pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from vpretrain.vision.data.readers import read_image
from vpretrain.vision.data.resize import Shape, covering, part, resize
from vpretrain.vision.data.source import Pool
from vpretrain.vision.model.batch import Labelled
from vpretrain.vision.model.learner import VisionLearner


def tokens(learner: VisionLearner, image_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
    """Return the frozen backbone's normalised tokens, computed in the learner's precision."""
    with learner.autocast():
        return learner.features(image_B3HW).float()


@dataclass(frozen=True)
class WholeImages:
    """Features of whole images of one size: each is scaled, both sides alike, until it just covers the recipe's size, and its
    right and lower edges are repeated up to a whole number of patches.

    Attributes:
        images: the images and labels, at their own size, on the CPU.
        grid_BDhw: the patches' features.
        tokens_BTD: all tokens.
        stretch: height and width of what the patches show, in units of the image's own.
    """

    images: Labelled
    grid_BDhw: Float[Tensor, "B D h w"]
    tokens_BTD: Float[Tensor, "B T D"]
    stretch: tuple[float, float]

    @classmethod
    def of(cls, learner: VisionLearner, images: Labelled, shape: Shape) -> WholeImages:
        """Compute the features of images."""
        own, patch = (images.image_B3HW.shape[2], images.image_B3HW.shape[3]), learner.backbone.patch_size
        height, width = covering(own, shape)
        scaled_B3HW = resize(images.image_B3HW, (height, width)).to(learner.device).float() / 255
        below, right = -height % patch, -width % patch
        seen_B3HW = F.pad(scaled_B3HW, (0, right, 0, below), mode="replicate")
        tokens_BTD = tokens(learner, seen_B3HW)
        grid_BDhw = learner.backbone.grid(tokens_BTD, height + below, width + right)
        return cls(images, grid_BDhw, tokens_BTD, ((height + below) / height, (width + right) / width))

    def at_pixels(self, outputs: Callable[[Tensor, int, int], Tensor]) -> Tensor:
        """Return `outputs`(grid, height, width), a head's for every pixel, of the images' own pixels."""
        height, width = self.images.image_B3HW.shape[2:]
        down, across = self.stretch
        return outputs(self.grid_BDhw, round(height * down), round(width * across))[..., :height, :width]


def whole_images(
    learner: VisionLearner, pool: Pool, rows: Sequence[int], shape: Shape, batch_size: int
) -> Iterator[WholeImages]:
    """Yield the features of whole images in order, consecutive images of one size together, at most `batch_size`."""
    waiting: list[Labelled] = []
    for number in rows:
        image = pool[[number]]
        if waiting and (len(waiting) == batch_size or image.image_B3HW.shape != waiting[0].image_B3HW.shape):
            yield WholeImages.of(learner, Labelled.joined(waiting), shape)
            waiting = []
        waiting.append(image)
    yield WholeImages.of(learner, Labelled.joined(waiting), shape)


def central_part(file: Path, shape: Shape) -> Shaped[Tensor, "1 3 H W"]:
    """Read an image and cut out the largest part of the proportions of `shape` from its middle."""
    image_3HW = read_image(file)
    height, width = image_3HW.shape[1:]
    return part(resize(image_3HW[None], covering((height, width), shape)), shape, 0.5)


def patch_mean(learner: VisionLearner, image_3HW: Shaped[Tensor, "3 H W"], longer: float) -> Float[Tensor, "1 D"]:
    """Return the mean of the patch tokens of an image that is scaled down until its longer side has `longer` pixels, never up,
    and cut to whole patches."""
    patch, scale = learner.backbone.patch_size, min(1.0, longer / max(image_3HW.shape[1:]))
    height, width = (max(patch, round(side * scale)) for side in image_3HW.shape[1:])
    whole_B3HW = part(resize(image_3HW[None], (height, width)), (height // patch * patch, width // patch * patch), 0.5)
    return learner.backbone.patch_mean(tokens(learner, whole_B3HW.to(learner.device).float() / 255)).cpu()
