"""Dense probes: heads fitted on frozen features of patches, and the metrics of their predictions.

Shapes: N images, D width, h x w patches, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vpretrain.order import Shuffled
from vpretrain.types import Json
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.data.resize import Shape
from vpretrain.vision.data.source import Pool
from vpretrain.vision.evaluation.features import WholeImages, tokens, whole_images
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.heads import (
    LabelKind,
    dense_head,
    label_loss,
    pixel_outputs,
    predicted_depth,
    valid_depth,
)
from vpretrain.vision.model.learner import VisionLearner

_Grids = Callable[[Sequence[int], Labelled], Tensor]  # the feature grids [B, D, h, w] of images, with their numbers
DEPTH_METRICS = ("depth_rmse", "depth_rmse_of_images", "depth_abs_rel", "depth_delta_1")
_KEPT_BYTES = 4 * 2**30
_IMAGE_WORK = 4  # an image's features cost about as much as this many probe steps
_BATCH = 8  # the paper's (App G.3), as are weight decay, clipping and warm-up


class Probed(NamedTuple):
    """The results of the probes.

    Attributes:
        together: metrics over all test images.
        images: metrics of each, by its number.
        train_ND: summaries of the images that the probes were fitted on; None if they were not asked for.
        test_ND: summaries of the test images.
        test_mean_ND: means of their patch tokens.
    """

    together: Json
    images: dict[int, Json]
    train_ND: Tensor | None
    test_ND: Tensor
    test_mean_ND: Tensor


class DenseProbes:
    """Linear-BN heads on frozen features at one size: fitted on parts of images, tested on whole images.

    Args:
        config: sizes and steps.
        train, test: labelled images.
        tasks: what is predicted.
        having: only images with labels of this kind; None for all images.
        summaries: whether the training images' summaries are needed.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        train: Pool,
        test: Pool,
        tasks: Sequence[LabelKind],
        *,
        having: LabelKind | None = None,
        summaries: bool = False,
    ) -> None:
        self.config, self.train, self.test, self.tasks, self.summaries = config, train, test, tasks, summaries
        self._train_rows, self._test_rows = (
            list(range(len(pool))) if having is None else pool.having(having) for pool in (train, test)
        )

    @property
    def work(self) -> int:
        """Progress units reported to `spend`: one per probe step, several per image."""
        return _IMAGE_WORK * (len(self._train_rows) + len(self._test_rows)) + len(self.tasks) * self.config.probe_steps

    def __call__(self, learner: VisionLearner, spend: Callable[[int], None]) -> Probed:
        """Fit and test the heads of a backbone."""
        backbone, shape = learner.backbone, self.train.shape
        assert shape is not None
        grids, train_ND = self._grids(learner, shape, spend)
        heads = {task: self._fit(task, learner, grids, spend) for task in self.tasks}
        metrics, found = DenseMetrics(heads, self.test.classes), list[Json]()
        summaries, means = [], []
        for whole in whole_images(learner, self.test, self._test_rows, shape, self.config.batch_size):
            with learner.autocast():
                found += metrics.add(whole)
            summaries.append(backbone.summary(whole.tokens_BTD).cpu())
            means.append(backbone.patch_mean(whole.tokens_BTD).cpu())
            spend(_IMAGE_WORK * len(whole.images))
        images = dict(zip(self._test_rows, found, strict=True))
        return Probed(metrics.together(), images, train_ND, torch.cat(summaries), torch.cat(means))

    def _grids(
        self, learner: VisionLearner, shape: Shape, spend: Callable[[int], None]
    ) -> tuple[_Grids, Float[Tensor, "N D"] | None]:
        """Return a function that gives feature grids, kept if they are small, otherwise computed anew for every batch; and the
        summaries, if asked for."""
        backbone, rows, kept, summaries = learner.backbone, self._train_rows, dict[int, Tensor](), []
        keep = 4 * len(rows) * math.prod(backbone.patches(*shape)) * backbone.width <= _KEPT_BYTES

        def grids(some: Sequence[int], images: Labelled) -> Float[Tensor, "B D h w"]:
            if keep:
                return torch.stack([kept[row] for row in some])
            return backbone.grid(tokens(learner, images.image_B3HW), *shape)

        for first in range(0, len(rows), self.config.batch_size):
            some = rows[first : first + self.config.batch_size]
            if keep or self.summaries:
                tokens_BTD = tokens(learner, self.train[some].to(learner.device).image_B3HW)
                summaries.append(backbone.summary(tokens_BTD).cpu())
                if keep:
                    kept |= zip(some, backbone.grid(tokens_BTD, *shape), strict=True)
            spend(_IMAGE_WORK * len(some))
        return grids, torch.cat(summaries) if self.summaries else None

    def _fit(self, task: LabelKind, learner: VisionLearner, grids: _Grids, spend: Callable[[int], None]) -> nn.Module:
        """Fit a head, with the same start and batches for every backbone."""
        config, own = self.config, self.train.having(task)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            outputs = self.train.classes if task == "segmentation" else 1
            head = dense_head("linear", learner.backbone.width, outputs).to(learner.device)
            optimizer = torch.optim.AdamW(head.parameters(), lr=config.probe_rate(task), weight_decay=0.05)
            schedule = LambdaLR(optimizer, partial(_rate, steps=config.probe_steps))
            order = Shuffled(len(own), task)
            rows_of = [[own[order[step * _BATCH + i]] for i in range(_BATCH)] for step in range(config.probe_steps)]
            for rows, read in zip(rows_of, self.train.batches(rows_of), strict=True):
                images = read.to(learner.device)
                grid_BDhw = grids(rows, images)
                with learner.autocast():
                    loss = label_loss(task, head, grid_BDhw, images, squared=True)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                spend(1)
        return head.eval()


def _rate(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of the highest: a linear warm-up over 5 % of the steps, and a cosine."""
    return min((step + 1) / max(1.0, 0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))


class DenseMetrics:
    """Metrics of fitted heads' predictions, at every pixel of whole images at their own size."""

    def __init__(self, heads: dict[LabelKind, nn.Module], classes: int) -> None:
        from torchmetrics.classification import MulticlassJaccardIndex

        self._heads, self._depths = heads, list[Tensor]()
        self._iou = MulticlassJaccardIndex(max(2, classes), ignore_index=IGNORED)

    @torch.no_grad()
    def add(self, whole: WholeImages) -> list[Json]:
        """Predict images; return the metrics of each."""
        images = whole.images
        found: list[Json] = [{} for _ in range(len(images))]
        if "segmentation" in self._heads:
            logits_BCHW = whole.at_pixels(partial(pixel_outputs, self._heads["segmentation"]))
            class_BHW, label_BHW = logits_BCHW.argmax(1).cpu(), images.label_BHW.long()
            self._iou.update(class_BHW, label_BHW)
            for image, ours, true in zip(found, class_BHW, label_BHW, strict=True):
                if bool((true != IGNORED).any()):
                    image["miou"] = image_iou(ours, true)
        if "depth" in self._heads:
            depth_BHW = whole.at_pixels(partial(predicted_depth, self._heads["depth"]))
            for image, ours, true in zip(found, depth_BHW, images.depth_BHW.to(depth_BHW), strict=True):
                if bool(valid_depth(true).any()):
                    self._depths.append(depth_errors(ours, true).cpu())
                    image["depth_rmse"] = float(self._depths[-1][0].sqrt())
        return found

    def together(self) -> Json:
        """Return the metrics over all images."""
        found: Json = {"miou": float(self._iou.compute())} if "segmentation" in self._heads else {}
        return found | depth_metrics(torch.stack(self._depths)) if self._depths else found


def image_iou(predicted_HW: Shaped[Tensor, "H W"], label_HW: Shaped[Tensor, "H W"]) -> float:
    """Mean intersection over union of an image, over the classes that it shows."""
    known = label_HW != IGNORED
    ious = []
    for kind in label_HW[known].unique():
        mine, true = (predicted_HW == kind) & known, label_HW == kind
        ious.append((mine & true).sum() / (mine | true).sum())
    return float(torch.stack(ious).mean())


def depth_errors(predicted_HW: Float[Tensor, "H W"], depth_HW: Float[Tensor, "H W"]) -> Float[Tensor, " 4"]:
    """Return an image's mean squared error, mean relative error, fraction within a factor of 1.25, number of valid pixels."""
    valid = valid_depth(depth_HW)
    ours, true = predicted_HW[valid].float(), depth_HW[valid].float()
    errors = (
        (ours - true).square(),
        (ours - true).abs() / true,
        (torch.maximum(ours / true, true / ours) < 1.25).float(),
    )
    return torch.stack([*(error.mean() for error in errors), valid.sum().float()])


def depth_metrics(errors_N4: Float[Tensor, "N 4"]) -> dict[str, float]:
    """RMSE (metres), AbsRel and delta_1 over the valid pixels of all images, and the mean over images of each image's RMSE."""
    fraction_N = (errors_N4[:, 3] / errors_N4[:, 3].sum()).double()
    square, relative, within = (fraction_N @ errors_N4[:, :3].double()).tolist()
    of_images = float(errors_N4[:, 0].sqrt().mean())
    return dict(zip(DEPTH_METRICS, (square**0.5, of_images, relative, within), strict=True))
