"""Evaluate a frozen backbone: dense probes, classification, retrieval. Nothing here changes the learner.

Shapes: N images, D width, h x w patches, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from vpretrain.console import steady
from vpretrain.order import Shuffled
from vpretrain.types import Json
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.data.readers import read_image
from vpretrain.vision.data.resize import resize
from vpretrain.vision.data.source import Pool
from vpretrain.vision.evaluation.classification import classification_accuracy, read_classes_of_folders
from vpretrain.vision.evaluation.retrieval import Query, read_revisited, revisited_map, scene_map
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.heads import (
    LabelKind,
    dense_head,
    depth_loss,
    pixel_outputs,
    predicted_depth,
    segmentation_loss,
    valid_depth,
)
from vpretrain.vision.model.learner import VisionLearner

Grids = Callable[[list[int]], Tensor]  # the feature grids [B, D, h, w] of images, by their indices
DEPTH_FIGURES = ("depth_rmse", "depth_rmse_of_images", "depth_abs_rel", "depth_delta_1")
_PROBE_BATCH = 8
_KEPT_BYTES = 4 * 2**30
_IMAGE_WORK = 4  # an image's features cost about as much as this many probe steps


class Evaluation:
    """The evaluation of a backbone; its data are opened before the training, and read as they are needed.

    Args:
        config: sources and sizes.

    Raises:
        UserError: a source has no labels, the folders of classes do not match, or retrieval has no valid ground truth.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self.train, self.test = Pool(config.train, config.shape), Pool(config.test, config.shape)
        self.classes = None if config.classes is None else read_classes_of_folders(config.classes)
        self.retrieval = None if config.retrieval is None else read_revisited(config.retrieval)

    def __call__(self, learner: VisionLearner) -> Json:
        """Return the backbone's metrics; `images` lists them per image, for paired comparisons."""
        config = self.config
        tasks: list[LabelKind] = []
        if self.train.classes and self.train.classes == self.test.classes:
            tasks.append("segmentation")
        if all(pool.having("depth") for pool in (self.train, self.test)):
            tasks.append("depth")
        work = _IMAGE_WORK * (len(self.train) + len(self.test)) + len(tasks) * config.probe_steps
        spent = 0
        with steady("       evaluation", work) as done:

            def spend(parts: int) -> None:
                nonlocal spent
                spent += parts
                done(spent)

            grids, train_ND = _grids(learner, self.train, config, spend)
            heads = {task: self._probe(task, learner, grids, spend) for task in tasks}
            figures, images, test_ND = self._test(learner, heads, spend)
        figures["accuracy"] = self._accuracy(learner, train_ND, test_ND)
        figures["retrieval_map"] = scene_map(test_ND, self.test.scene_N)
        if self.retrieval is not None:
            figures |= self._retrieval(learner, *self.retrieval)
        return figures | {"pictures": images}

    def _accuracy(self, learner: VisionLearner, train_ND: Tensor, test_ND: Tensor) -> float | None:
        """Return a linear classifier's accuracy: on separate images if the recipe names some, else on the dense probes'."""
        if self.classes is not None:
            train, test = self.classes
            with steady("   classification", len(train) + len(test)) as done:
                train_ND = self._summaries(learner, train, done)
                test_ND = self._summaries(learner, test, lambda seen: done(len(train) + seen))
            train_N, test_N = (torch.tensor([number for _, number in images]) for images in self.classes)
        else:
            train_N, test_N = self.train.category_N, self.test.category_N
            if min(int(train_N.min()), int(test_N.min())) < 0:
                return None
        return classification_accuracy(train_ND, train_N, test_ND, test_N)

    def _summaries(
        self, learner: VisionLearner, images: list[tuple[Path, int]], done: Callable[[int], None]
    ) -> Float[Tensor, "N D"]:
        """Return the summaries of images in files."""
        summaries, step = [], self.config.batch_size
        for first in range(0, len(images), step):
            files = [file for file, _ in images[first : first + step]]
            batch_B3HW = torch.cat([resize(read_image(file)[None], self.config.shape) for file in files])
            summaries.append(_summary(learner, batch_B3HW))
            done(first + len(files))
        return torch.cat(summaries)

    def _retrieval(
        self, learner: VisionLearner, queries: Sequence[Query], gallery: Sequence[Path]
    ) -> dict[str, float | None]:
        """Measure instance retrieval, with each image at its own aspect ratio."""
        size, patch = max(self.config.shape), learner.backbone.patch_size
        with steady("        retrieval", len(queries) + len(gallery)) as done:
            rows = []
            for query in queries:
                left, upper, right, lower = map(round, query.box)
                part_3HW = read_image(query.file)[:, max(0, upper) : lower, max(0, left) : right]
                rows.append(_summary(learner, _whole(part_3HW, size, patch)))
                done(len(rows))
            for file in gallery:
                rows.append(_summary(learner, _whole(read_image(file), size, patch)))
                done(len(rows))
        summary_ND = torch.cat(rows)
        return revisited_map(summary_ND[: len(queries)], summary_ND[len(queries) :], queries)

    def _probe(self, task: LabelKind, learner: VisionLearner, grids: Grids, spend: Callable[[int], None]) -> nn.Module:
        """Fit a linear-BN head on frozen features, with the same start and batches for every backbone."""
        config, own = self.config, self.train.having(task)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            outputs = self.train.classes if task == "segmentation" else 1
            head = dense_head("linear", learner.backbone.width, outputs).to(learner.device)
            optimizer = torch.optim.AdamW(head.parameters(), lr=config.probe_lr, weight_decay=0.05)
            schedule = OneCycleLR(optimizer, config.probe_lr, config.probe_steps, pct_start=0.05)
            order = Shuffled(len(own), task)
            for step in range(config.probe_steps):
                rows = [own[order[step * _PROBE_BATCH + i]] for i in range(_PROBE_BATCH)]
                images = self.train[rows].to(learner.device)
                if task == "segmentation":
                    loss = segmentation_loss(head, grids(rows), images.label_BHW)
                else:
                    loss = depth_loss(head, grids(rows), images.depth_BHW, squared=True)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                spend(1)
        return head.eval()

    def _test(
        self, learner: VisionLearner, heads: dict[LabelKind, nn.Module], spend: Callable[[int], None]
    ) -> tuple[Json, list[Json], Tensor]:
        """Return the probes' metrics on the test images, in all and per image, and the summaries of these images."""
        from torchmetrics.classification import MulticlassJaccardIndex

        shape, summaries, depths = self.config.shape, [], []
        whole_iou = MulticlassJaccardIndex(max(2, self.test.classes), ignore_index=IGNORED)
        images: list[Json] = []
        for batch, grid_BDhw, summary_BD in _batches(learner, self.test, self.config, spend):
            summaries.append(summary_BD)
            found: list[Json] = [{"scene": int(scene)} for scene in batch.scene_B]
            with torch.no_grad():
                if "segmentation" in heads:
                    class_BHW = pixel_outputs(heads["segmentation"], grid_BDhw, *shape).argmax(1).cpu()
                    label_BHW = batch.label_BHW.cpu()
                    whole_iou.update(class_BHW, label_BHW)
                    for image, ours, true in zip(found, class_BHW, label_BHW, strict=True):
                        if bool((true != IGNORED).any()):
                            image["miou"] = image_iou(ours, true)
                if "depth" in heads:
                    depth_BHW = predicted_depth(heads["depth"], grid_BDhw, *shape)
                    for image, ours, true in zip(found, depth_BHW, batch.depth_BHW, strict=True):
                        if bool(valid_depth(true).any()):
                            depths.append(depth_errors(ours, true).cpu())
                            image["depth_rmse"] = float(depths[-1][0].sqrt())
            images += found
        figures: Json = dict.fromkeys(("miou", *DEPTH_FIGURES))
        if "segmentation" in heads:
            figures["miou"] = float(whole_iou.compute())
        if depths:
            figures |= depth_figures(torch.stack(depths))
        return figures, images, torch.cat(summaries)


def _grids(
    learner: VisionLearner, images: Pool, config: EvaluationConfig, spend: Callable[[int], None]
) -> tuple[Grids, Float[Tensor, "N D"]]:
    """Return images' frozen features: grids, kept if they are small, otherwise recomputed for every batch; and summaries."""
    backbone, grids, summaries = learner.backbone, [], []
    keep = 4 * len(images) * math.prod(backbone.patches(*config.shape)) * backbone.width <= _KEPT_BYTES
    for _, grid_BDhw, summary_BD in _batches(learner, images, config, spend):
        summaries.append(summary_BD)
        if keep:
            grids.append(grid_BDhw)
    if keep:
        return torch.cat(grids).__getitem__, torch.cat(summaries)
    return lambda rows: _features(learner, images[rows].to(learner.device))[0], torch.cat(summaries)


def _batches(
    learner: VisionLearner, images: Pool, config: EvaluationConfig, spend: Callable[[int], None]
) -> Iterator[tuple[Labelled, Tensor, Tensor]]:
    """Yield images, their feature grids and, on the CPU, their summaries, batch by batch."""
    for first in range(0, len(images), config.batch_size):
        batch = images[range(first, min(first + config.batch_size, len(images)))].to(learner.device)
        grid_BDhw, summary_BD = _features(learner, batch)
        yield batch, grid_BDhw, summary_BD.cpu()
        spend(_IMAGE_WORK * len(batch))


def _features(learner: VisionLearner, batch: Labelled) -> tuple[Tensor, Tensor]:
    tokens_BTD = learner.features(batch.image_B3HW)
    return learner.backbone.grid(tokens_BTD, *batch.image_B3HW.shape[2:]), learner.backbone.summary(tokens_BTD)


def _summary(learner: VisionLearner, image_B3HW: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """Return the summaries of uint8 images."""
    return learner.backbone.summary(learner.features(image_B3HW.to(learner.device).float() / 255)).cpu()


def _whole(image_3HW: Shaped[Tensor, "3 H W"], size: int, patch: int) -> Shaped[Tensor, "1 3 h w"]:
    """Resize an image so that its longer side is about `size` and both sides are multiples of the patch."""
    scale = size / max(image_3HW.shape[1:]) / patch
    height, width = (max(1, round(side * scale)) * patch for side in image_3HW.shape[1:])
    return resize(image_3HW[None], (height, width))


def image_iou(predicted_HW: Shaped[Tensor, "H W"], label_HW: Shaped[Tensor, "H W"]) -> float:
    """Mean intersection over union of an image, over the classes that it shows."""
    known = label_HW != IGNORED
    ious = []
    for kind in label_HW[known].unique():
        mine, true = (predicted_HW == kind) & known, label_HW == kind
        ious.append((mine & true).sum() / (mine | true).sum())
    return float(torch.stack(ious).mean())


def depth_errors(predicted_HW: Float[Tensor, "H W"], depth_HW: Float[Tensor, "H W"]) -> Float[Tensor, " 4"]:
    """Return an image's mean squared error, mean relative error, share within a factor of 1.25, and number of valid pixels."""
    valid = valid_depth(depth_HW)
    ours, true = predicted_HW[valid].float(), depth_HW[valid].float()
    errors = (
        (ours - true).square(),
        (ours - true).abs() / true,
        (torch.maximum(ours / true, true / ours) < 1.25).float(),
    )
    return torch.stack([*(error.mean() for error in errors), valid.sum().float()])


def depth_figures(errors_N4: Float[Tensor, "N 4"]) -> dict[str, float]:
    """RMSE (metres), AbsRel and delta_1 over the valid pixels of all images, and the mean over images of each image's RMSE."""
    share_N = (errors_N4[:, 3] / errors_N4[:, 3].sum()).double()
    square, relative, within = (share_N @ errors_N4[:, :3].double()).tolist()
    of_images = float(errors_N4[:, 0].sqrt().mean())
    return dict(zip(DEPTH_FIGURES, (square**0.5, of_images, relative, within), strict=True))
