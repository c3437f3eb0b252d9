"""Light heads on a frozen backbone's patches, and their losses, for feedback and probes.

Shapes: B images, D the backbone's width, h x w patches, H x W pixels, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vpretrain.vision.model.batch import IGNORED, Labelled

LabelKind = Literal["segmentation", "depth"]
_BIAS_STEPS = 30
_BIAS_PIXELS = 32  # per side of an image, evenly spread: enough for a bias
MIN_DEPTH, MAX_DEPTH = 1e-3, 10.0  # metres; depths outside are invalid (NYUv2's protocol)


def dense_head(kind: Literal["linear", "conv"], width: int, outputs: int, *, zero: bool = False) -> nn.Module:
    """Build a head: BatchNorm and a linear layer per patch, or a small convolutional decoder.

    With `zero` its last layer starts from 0: what has not been fitted gives the backbone no gradient.
    """
    between: list[nn.Module] = []
    if kind == "conv":
        between = [nn.Conv2d(width, 128, 3, padding=1), nn.GELU(), nn.ConvTranspose2d(128, 64, 2, stride=2), nn.GELU()]
    last = nn.Conv2d(64 if between else width, outputs, 1)
    if zero:
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(nn.BatchNorm2d(width), *between, last)


def start_from_median(head: nn.Module, depth_BHW: Float[Tensor, "*B H W"]) -> None:
    """Let a depth head's last bias start from the median of the valid depths, of which there must be one.

    A step of Adam moves the bias by the learning rate at most. Until it is there, all errors have one sign, and their gradient
    says nothing about features.
    """
    last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        median = depth_BHW[valid_depth(depth_BHW)].median().float()
        last.bias.fill_(median + torch.log(-torch.expm1(-median)))  # softplus of it is the median


def pixel_outputs(
    head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], height: int, width: int
) -> Float[Tensor, "B C H W"]:
    """Return a head's outputs for every pixel: class scores, or a raw depth."""
    return F.interpolate(head(grid_BDhw).float(), (height, width), mode="bilinear", align_corners=False)


def pixel_depths(
    head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], height: int, width: int
) -> Float[Tensor, "B H W"]:
    """Return the depth of every pixel in metres, positive by softplus."""
    return F.softplus(pixel_outputs(head, grid_BDhw, height, width)[:, 0])


def predicted_depth(
    head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], height: int, width: int
) -> Float[Tensor, "B H W"]:
    """Return the same, clipped to the range of valid depths."""
    return pixel_depths(head, grid_BDhw, height, width).clamp(MIN_DEPTH, MAX_DEPTH)


def valid_depth(depth_BHW: Float[Tensor, "*B H W"]) -> Tensor:
    """Return a mask of the pixels whose true depth is known and within range."""
    return (depth_BHW > MIN_DEPTH) & (depth_BHW < MAX_DEPTH)


def segmentation_loss(
    head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], label_BHW: Int[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy in nats per labelled pixel; 0 if none is labelled."""
    logits_BCHW = pixel_outputs(head, grid_BDhw, *label_BHW.shape[1:])
    total = F.cross_entropy(logits_BCHW, label_BHW, ignore_index=IGNORED, reduction="sum")
    return total / (label_BHW != IGNORED).sum().clamp_min(1)


def depth_loss(
    head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], depth_BHW: Float[Tensor, "B H W"], *, squared: bool = False
) -> Float[Tensor, ""]:
    """L1 loss on valid depths, in metres; if `squared`, L2, in square metres.

    Predictions are not clipped: beyond the range they would have no gradient.
    """
    error_BHW = (pixel_depths(head, grid_BDhw, *depth_BHW.shape[1:]) - depth_BHW).abs()
    error_BHW = error_BHW.square() if squared else error_BHW
    valid_BHW = valid_depth(depth_BHW)
    return torch.where(valid_BHW, error_BHW, 0.0).sum() / valid_BHW.sum().clamp_min(1)


class Shift(nn.Module):
    """Adds a bias to each output of a head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, output_BChw: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Return the outputs with their biases."""
        return output_BChw + self.bias[:, None, None]


def refitted_bias(kind: LabelKind, head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], images: Labelled) -> Shift:
    """Return the bias with which a head's loss on these images is least, to be applied after the head.

    Otherwise a part that all images share, such as a common error of the depths, dominates the gradient; a newly fitted probe
    would absorb it in its bias.
    """
    height, width = images.label_BHW.shape[1:]
    stride = max(1, width // _BIAS_PIXELS)

    def spread(x: Tensor) -> Tensor:
        return x[..., ::stride, ::stride]

    images = replace(
        images,
        image_B3HW=spread(images.image_B3HW),
        label_BHW=spread(images.label_BHW),
        depth_BHW=spread(images.depth_BHW),
    )
    with torch.no_grad():  # once, as interpolating changes no bias
        output_BCHW = spread(pixel_outputs(head, grid_BDhw, height, width)).contiguous()
    shift = Shift(output_BCHW.shape[1]).to(output_BCHW.device)
    optimizer = torch.optim.LBFGS([shift.bias], max_iter=_BIAS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = label_loss(kind, shift, output_BCHW, images)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return shift.requires_grad_(False)


def label_loss(
    kind: LabelKind, head: nn.Module, grid_BDhw: Float[Tensor, "B D h w"], images: Labelled, *, squared: bool = False
) -> Float[Tensor, ""]:
    """Return a head's loss on one kind of labels; `squared` is that of `depth_loss`."""
    if kind == "segmentation":
        return segmentation_loss(head, grid_BDhw, images.label_BHW)
    return depth_loss(head, grid_BDhw, images.depth_BHW, squared=squared)
