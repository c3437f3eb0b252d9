"""A designer's masks and views of a few images over a run: recorded during training, read for a report.

Shapes: V views, B images, H x W pixels.
"""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.value import inner
from vpretrain.types import Json
from vpretrain.vision.data.stream import VisionStream
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.learner import VisionLearner
from vpretrain.vision.task.construction import Fixed

IMAGES = 6
POINTS = 6  # points shown: all of an ordinary run's, some of an extended run's
_SIDE = 96  # maximum side of a recorded image, in pixels
_BYTES = 2**23  # maximum size of a record: many times that of a run
_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


def record_views(learner: VisionLearner, construction: Fixed, meta: MetaUpdate, stream: VisionStream) -> Json:
    """Record a few images under the current designer, without side effects; several processes call it together.

    Returns:
        JSON-ready: `images`, each with `crop` (its first global crop), `mask` (white: kept sharp) and `view` as data URIs;
        `kept`, the mask's mean; `value`, <u, g_pre> of the image's views along the current value direction u, and
        `value_unmasked`, that of its unmasked crops; None before the first meta update.
    """
    sample = stream.sample(IMAGES).to(learner.device)
    images = []
    for number in range(len(sample.keys)):
        batch = sample.images(slice(number, number + 1))
        with torch.no_grad():
            views = construction.inputs(batch)
        assert views.mask_VB1HW is not None
        mask_1HW = views.mask_VB1HW[0, 0]
        images.append(
            {
                "crop": _uri(batch.global_VB3HW[0, 0], "jpeg"),
                "mask": _uri(mask_1HW, "png"),
                "view": _uri(views.global_VB3HW[0, 0], "jpeg"),
                "kept": float(mask_1HW.mean()),
                "value": _value(learner, construction, meta, views),
                "value_unmasked": _value(learner, construction, meta, batch),
            }
        )
    return {"images": images}


def recorded_views(run: Path) -> list[Json]:
    """Read a run's record, in order: `step` (the last one made; -1 before the first), `seconds`, and `record_views`' result.

    Raises:
        UserError: there is no record, or it is not one that a run writes.
    """
    file = run / "views.jsonl"
    if not file.exists():
        raise UserError(f"{file} is not there: it is written by runs of an arm with a designer, from their start")
    try:
        if file.stat().st_size > _BYTES:
            raise ValueError(f"it is above {_BYTES:,} bytes")
        lines = read_lines(file)
        # A step may have been recorded twice, if a run was interrupted at its end.
        found = {int(line["step"]): _checked(line) for line in lines}
        if len({len(line["images"]) for line in found.values()}) != 1:
            raise ValueError("its lines are not of the same images")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not what a run writes: {error}") from None
    steps = sorted(found)
    shown = min(len(steps), POINTS)
    return [found[steps[round(i * (len(steps) - 1) / max(1, shown - 1))]] for i in range(shown)]


def _value(learner: VisionLearner, construction: Fixed, meta: MetaUpdate, views: ViewBatch) -> float | None:
    if meta.direction is None:
        return None
    theta_S = meta.theta_at()
    with learner.meta_mode():
        inputs = learner.prepare(learner.varying(views), theta_S)

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            state = learner.forward(inputs, parameters)
            return learner.loss(state, construction.targets(inputs, state.detach()).detach())

        return float(inner(meta.direction, learner.gradient(loss, theta_S), None))


def _uri(image: Tensor, kind: str) -> str:
    """Encode a small image as a data URI; masks as PNG, which is lossless."""
    from PIL import Image

    height, width = (min(side, _SIDE) for side in image.shape[1:])
    if image.shape[1:] != (height, width):
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _checked(line: Json) -> Json:
    """Check a line of the record: a page shows its images, so they must be embedded in the record, not linked."""
    if not line["images"] or len(line["images"]) > IMAGES or not math.isfinite(line["seconds"]):
        raise ValueError("it has no images, or too many, or no time")
    for image in line["images"]:
        if not all(_IMAGE.fullmatch(image[name]) for name in ("crop", "mask", "view")):
            raise ValueError("an image is not in the record itself")
        for name in ("kept", "value", "value_unmasked"):
            if image[name] is not None and not math.isfinite(image[name]):
                raise ValueError(f"{name} is no number")
    return line
