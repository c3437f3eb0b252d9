"""Evaluation of a backbone as it is: dense probes, classification, retrieval. Nothing here changes the learner.

Shapes: N pictures, D width, h x w patches, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vpretrain.order import Shuffled
from vpretrain.run.progress import steady
from vpretrain.vision.batch import IGNORED, Labelled
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.heads import (
    dense_head,
    depth_loss,
    predicted_depth,
    segmentation_logits,
    segmentation_loss,
    valid_depth,
)
from vpretrain.vision.learner import VisionLearner
from vpretrain.vision.scenes import CLASSES
from vpretrain.vision.source import labelled

_PROBE_BATCH = 16
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
        work = _PICTURE_WORK * (len(self.train) + len(self.test)) + 2 * config.probe_steps
        with steady("       evaluation", work) as done:
            train_NDhw, train_ND = self._features(learner, self.train, done, 0)
            test_NDhw, test_ND = self._features(learner, self.test, done, len(self.train))
            start = _PICTURE_WORK * (len(self.train) + len(self.test))
            segmentation = self._probe("segmentation", train_NDhw, lambda step: done(start + step))
            depth = self._probe("depth", train_NDhw, lambda step: done(start + config.probe_steps + step))
        with torch.no_grad():
            size = (config.size, config.size)
            predicted_NHW = torch.cat(
                [segmentation_logits(segmentation, g, *size).argmax(1) for g in test_NDhw.split(16)]
            )
            depth_NHW = torch.cat([predicted_depth(depth, g, *size) for g in test_NDhw.split(16)])
        iou_N = picture_iou(predicted_NHW, self.test.label_BHW)
        errors = [depth_figures(p[None], t[None]) for p, t in zip(depth_NHW, self.test.depth_BHW, strict=True)]
        return {
            "miou": mean_iou(predicted_NHW, self.test.label_BHW),
            **depth_figures(depth_NHW, self.test.depth_BHW),
            "accuracy": classification_accuracy(train_ND, self.train.category_B, test_ND, self.test.category_B),
            "retrieval_map": retrieval_map(test_ND, self.test.scene_B),
            "pictures": [
                {"scene": int(scene), "miou": float(iou), "depth_rmse": error["depth_rmse"]}
                for scene, iou, error in zip(self.test.scene_B, iou_N, errors, strict=True)
            ],
        }

    def _features(self, learner: VisionLearner, pictures: Labelled, done: Any, before: int) -> tuple[Tensor, Tensor]:
        size, grids, summaries = self.config.size, [], []
        for first in range(0, len(pictures), self.config.batch_size):
            pixels = pictures.image_B3HW[first : first + self.config.batch_size].to(learner.device)
            tokens = learner.features(pixels)
            grids.append(learner.backbone.grid(tokens, size, size).cpu())
            summaries.append(learner.backbone.summary(tokens).cpu())
            done(_PICTURE_WORK * (before + min(len(pictures), first + self.config.batch_size)))
        return torch.cat(grids), torch.cat(summaries)

    def _probe(self, task: str, grid_NDhw: Float[Tensor, "N D h w"], done: Any) -> nn.Module:
        """A linear-BN head, fitted on frozen features; the same start and batches for every backbone."""
        config = self.config
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            head = dense_head("linear", grid_NDhw.shape[1], len(CLASSES) if task == "segmentation" else 1)
            optimizer = torch.optim.AdamW(head.parameters(), lr=config.probe_lr, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, config.probe_lr, config.probe_steps, pct_start=0.05
            )
            order = Shuffled(len(grid_NDhw), task)
            for step in range(config.probe_steps):
                rows = [order[step * _PROBE_BATCH + i] for i in range(_PROBE_BATCH)]
                if task == "segmentation":
                    loss = segmentation_loss(head, grid_NDhw[rows], self.train.label_BHW[rows])
                else:
                    loss = depth_loss(head, grid_NDhw[rows], self.train.depth_BHW[rows], squared=True)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                done(step + 1)
        return head.eval()


def mean_iou(predicted_NHW: Int[Tensor, "N H W"], label_NHW: Int[Tensor, "N H W"]) -> float:
    """Intersection over union, mean over classes, over all pixels of all pictures."""
    from torchmetrics.functional.classification import multiclass_jaccard_index

    return float(multiclass_jaccard_index(predicted_NHW, label_NHW, num_classes=len(CLASSES), ignore_index=IGNORED))


def picture_iou(predicted_NHW: Int[Tensor, "N H W"], label_NHW: Int[Tensor, "N H W"]) -> Float[Tensor, " N"]:
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
    ours, true = predicted_NHW[valid], depth_NHW[valid]
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
