"""An image sheet: crops and, in an arm that masks them, the masks and the views that the learner gets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.task.construction import Fixed

SHOWN = 8  # images per sheet


def draw_sheet(construction: Fixed, batch: ViewBatch, file: Path) -> Path:
    """Write rows of first global crops and, if there are masks, of these (white: kept sharp) and of the views, as a PNG."""
    from PIL import Image

    with torch.no_grad():
        views = construction.inputs(batch)
    shown = [batch.global_VB3HW[0, :SHOWN]]
    if views.mask_VB1HW is not None:
        shown += [views.mask_VB1HW[0, :SHOWN].expand_as(shown[0]), views.global_VB3HW[0, :SHOWN]]
    rows = torch.cat([_row(images_B3HW) for images_B3HW in shown], dim=1)
    Image.fromarray((rows.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()).save(file)
    return file


def _row(images_B3HW: Tensor) -> Tensor:
    """Put images side by side, each in a white frame of 2 pixels."""
    return torch.cat(F.pad(images_B3HW.cpu(), (2, 2, 2, 2), value=1.0).unbind(), dim=2)
