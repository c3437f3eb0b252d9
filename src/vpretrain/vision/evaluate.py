"""Evaluation of a backbone as it is: dense probes, classification, retrieval. Nothing here changes the learner.

Shapes: N pictures, D width, h x w patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from vpretrain.order import Shuffled
from vpretrain.run.progress import steady
from vpretrain.vision.batch import IGNORED, Labelled
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.heads import (
    Task,
    dense_head,
    depth_loss,
    predicted_depth,
    segmentation_logits,
    segmentation_loss,
    valid_depth,
)
from vpretrain.vision.learner import VisionLearner
from vpretrain.vision.source import labelled

_PROBE_BATCH = 16
_KEPT_BYTES = 4 * 2**30
_PICTURE_WORK = 4  # a picture's features cost about as much as this many probe steps


class Evaluation:
    """What a backbone is measured on; loaded once, before the training.

    Args:
        config: sources and sizes.

    Raises:
        UserError: a source without labels.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self.train, self.test = labelled(config.train, config.size), labelled(config.test, config.size)

    def __call__(self, learner: VisionLearner) -> dict[str, Any]:
        """Figures of the backbone; `pictures` lists them picture by picture, for paired comparisons."""
        config = self.config
        tasks: list[Task] = []
        if self.train.classes and self.train.classes == self.test.classes:
            tasks.append("segmentation")
        if all(bool(valid_depth(pool.depth_BHW).any()) for pool in (self.train, self.test)):
            tasks.append("depth")
        work = _PICTURE_WORK * (len(self.train) + len(self.test)) + len(tasks) * config.probe_steps
        with steady("       evaluation", work) as done:
            train = _Features(learner, self.train, config, lambda pictures: done(_PICTURE_WORK * pictures))
            start = _PICTURE_WORK * len(self.train)
            heads: dict[Task, nn.Module] = {}
            for number, task in enumerate(tasks):
                before = start + number * config.probe_steps
                heads[task] = self._probe(task, train, lambda step, before=before: done(before + step))  # type: ignore[misc]
            figures, summary_ND = self._test(
                learner, heads, lambda p: done(work - _PICTURE_WORK * (len(self.test) - p))
            )
        known = int(self.train.category_B.min()) >= 0 and int(self.test.category_B.min()) >= 0
        categories = self.train.category_B, self.test.category_B
        figures |= {
            "accuracy": classification_accuracy(train.summary_ND, categories[0], summary_ND, categories[1])
            if known
            else None,
            "retrieval_map": retrieval_map(summary_ND, self.test.scene_B),
        }
        return figures | {"pictures": figures.pop("pictures")}

    def _probe(self, task: Task, features: _Features, done: Callable[[int], None]) -> nn.Module:
        """A linear-BN head, fitted on frozen features; the same start and batches for every backbone."""
        config = self.config
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            head = dense_head("linear", features.width, self.train.classes if task == "segmentation" else 1)
            head.to(features.device)
            optimizer = torch.optim.AdamW(head.parameters(), lr=config.probe_lr, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, config.probe_lr, config.probe_steps, pct_start=0.05
            )
            order = Shuffled(len(self.train), task)
            for step in range(config.probe_steps):
                rows = [order[step * _PROBE_BATCH + i] for i in range(_PROBE_BATCH)]
                pictures = self.train[rows].to(features.device)
                if task == "segmentation":
                    loss = segmentation_loss(head, features.grid(rows), pictures.label_BHW)
                else:
                    loss = depth_loss(head, features.grid(rows), pictures.depth_BHW, squared=True)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                done(step + 1)
        return head.eval()

    def _test(
        self, learner: VisionLearner, heads: dict[Task, nn.Module], done: Callable[[int], None]
    ) -> tuple[dict[str, Any], Tensor]:
        """Figures of the probes on the test pictures, and the pictures' summaries."""
        size = (self.config.size, self.config.size)
        predicted: dict[Task, list[Tensor]] = {task: [] for task in heads}
        summaries = []
        for first in range(0, len(self.test), self.config.batch_size):
            batch = self.test[slice(first, first + self.config.batch_size)].to(learner.device)
            grid_BDhw, summary_BD = _features(learner, batch)
            summaries.append(summary_BD.cpu())
            with torch.no_grad():
                if "segmentation" in heads:
                    logits = segmentation_logits(heads["segmentation"], grid_BDhw, *size)
                    predicted["segmentation"].append(logits.argmax(1).byte().cpu())
                if "depth" in heads:
                    predicted["depth"].append(predicted_depth(heads["depth"], grid_BDhw, *size).half().cpu())
            done(first + len(batch))
        figures: dict[str, Any] = dict.fromkeys(("miou", "depth_rmse", "depth_abs_rel", "depth_delta_1"))
        pictures: list[dict[str, Any]] = [{"scene": int(scene)} for scene in self.test.scene_B]
        if "segmentation" in heads:
            classes_NHW = torch.cat(predicted["segmentation"])
            figures["miou"] = mean_iou(classes_NHW, self.test.label_BHW, self.test.classes)
            for picture, iou in zip(pictures, picture_iou(classes_NHW, self.test.label_BHW), strict=True):
                picture["miou"] = float(iou)
        if "depth" in heads:
            depth_NHW = torch.cat(predicted["depth"])
            figures |= depth_figures(depth_NHW, self.test.depth_BHW)
            for picture, mine, true in zip(pictures, depth_NHW, self.test.depth_BHW, strict=True):
                picture["depth_rmse"] = depth_figures(mine[None], true[None])["depth_rmse"]
        return figures | {"pictures": pictures}, torch.cat(summaries)


class _Features:
    """Frozen features of the training pictures: kept if they are small, otherwise computed anew for every batch."""

    def __init__(
        self, learner: VisionLearner, pictures: Labelled, config: EvaluationConfig, done: Callable[[int], None]
    ) -> None:
        self.learner, self.pictures = learner, pictures
        self.width, self.device = learner.backbone.width, learner.device
        patches = (config.size // learner.backbone.patch_size) ** 2
        keep = 4 * len(pictures) * patches * self.width <= _KEPT_BYTES
        grids, summaries = [], []
        for first in range(0, len(pictures), config.batch_size):
            batch = pictures[slice(first, first + config.batch_size)].to(self.device)
            grid_BDhw, summary_BD = _features(learner, batch)
            summaries.append(summary_BD.cpu())
            if keep:
                grids.append(grid_BDhw)
            done(first + len(batch))
        self.summary_ND = torch.cat(summaries)
        self._grid_NDhw = torch.cat(grids) if keep else None

    def grid(self, rows: list[int]) -> Float[Tensor, "B D h w"]:
        """Of some pictures."""
        if self._grid_NDhw is not None:
            return self._grid_NDhw[rows]
        return _features(self.learner, self.pictures[rows].to(self.device))[0]


def _features(learner: VisionLearner, batch: Labelled) -> tuple[Tensor, Tensor]:
    tokens_BTD = learner.features(batch.image_B3HW)
    return learner.backbone.grid(tokens_BTD, *batch.image_B3HW.shape[2:]), learner.backbone.summary(tokens_BTD)


def mean_iou(predicted_NHW: Shaped[Tensor, "N H W"], label_NHW: Shaped[Tensor, "N H W"], classes: int) -> float:
    """Intersection over union, mean over classes, over all pixels of all pictures."""
    from torchmetrics.functional.classification import multiclass_jaccard_index

    return float(
        multiclass_jaccard_index(predicted_NHW.long(), label_NHW.long(), num_classes=classes, ignore_index=IGNORED)
    )


def picture_iou(predicted_NHW: Shaped[Tensor, "N H W"], label_NHW: Shaped[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """Intersection over union of each picture, mean over the classes that it shows."""
    scores = []
    for predicted, label in zip(predicted_NHW, label_NHW, strict=True):
        known = label != IGNORED
        ious = []
        for kind in label[known].unique():
            mine, true = (predicted == kind) & known, label == kind
            ious.append((mine & true).sum() / (mine | true).sum())
        scores.append(torch.stack(ious).mean())
    return torch.stack(scores)


def depth_figures(predicted_NHW: Float[Tensor, "N H W"], depth_NHW: Float[Tensor, "N H W"]) -> dict[str, float]:
    """RMSE (metres), AbsRel and delta_1 (share within a factor of 1.25) over valid pixels."""
    valid = valid_depth(depth_NHW)
    ours, true = predicted_NHW[valid].float(), depth_NHW[valid].float()
    ratio = torch.maximum(ours / true, true / ours)
    return {
        "depth_rmse": float((ours - true).square().mean().sqrt()),
        "depth_abs_rel": float(((ours - true).abs() / true).mean()),
        "depth_delta_1": float((ratio < 1.25).float().mean()),
    }


def classification_accuracy(
    train_ND: Float[Tensor, "N D"], train_N: Int[Tensor, " N"], test_ND: Float[Tensor, "M D"], test_N: Int[Tensor, " M"]
) -> float:
    """Of a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return float(model.fit(train_ND.numpy(), train_N.numpy()).score(test_ND.numpy(), test_N.numpy()))


def retrieval_map(features_ND: Float[Tensor, "N D"], scene_N: Int[Tensor, " N"]) -> float | None:
    """Mean average precision of finding the other pictures of a scene by cosine; None if no scene has two."""
    features_ND = nn.functional.normalize(features_ND, dim=-1)
    similarity_NN = features_ND @ features_ND.T
    relevant_NN = scene_N[:, None] == scene_N[None]
    others_NN = ~torch.eye(len(scene_N), dtype=torch.bool)
    scores = [
        average_precision(similarity[others], relevant[others])
        for similarity, relevant, others in zip(similarity_NN, relevant_NN, others_NN, strict=True)
        if bool(relevant[others].any())
    ]
    return sum(scores) / len(scores) if scores else None


def average_precision(score_N: Float[Tensor, " N"], relevant_N: Bool[Tensor, " N"]) -> float:
    """Area under precision against recall of a ranking."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(relevant_N.numpy(), score_N.numpy()))
