"""The presentation of a vision evaluation's metrics in tables."""

from __future__ import annotations

from operator import methodcaller
from typing import Literal

from vpretrain.config import Recipe
from vpretrain.modality import Measure, Metrics, Paired
from vpretrain.plain import without_folders
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.evaluation.retrieval import PROTOCOLS


def _measure(
    key: str, better: Literal["lower", "higher"], form: str = ".4f", unit: str = "", paired: str | None = None
) -> Measure:
    return Measure(methodcaller("get", key), form, better, unit, paired)


def _headline(recipe: Recipe) -> str:
    """Name the images that the figures are of: generated scenes are seldom what a learner is for."""
    assert isinstance(recipe.evaluation, EvaluationConfig)
    test, classes = recipe.evaluation.test, recipe.evaluation.classes
    of = " and ".join(dict.fromkeys("generated scenes" if one.scenes else without_folders(one.origin) for one in test))
    accuracy = f", accuracy of {without_folders(classes.test or classes.train)}" if classes else ""
    return f"probes on the frozen backbone (images of {of}{accuracy})"


_MEASURES = {
    "mIoU": _measure("miou", "higher"),  # of the set, not of each image
    "RMSE": _measure("depth_rmse", "lower", unit=" m"),
    "RMSE of images": _measure("depth_rmse_of_images", "lower", unit=" m", paired="depth_rmse"),
    "AbsRel": _measure("depth_abs_rel", "lower"),
    "delta_1": _measure("depth_delta_1", "higher"),
    "accuracy": _measure("accuracy", "higher", ".1%"),
    "mAP": _measure("retrieval_map", "higher"),
    **{
        f"{place.title()} {protocol}": _measure(f"{place}_{protocol}", "higher")
        for place in ("oxford", "paris")
        for protocol in PROTOCOLS
    },
}
METRICS = Metrics(
    headline=_headline,
    cases="test_images",
    paired={
        "miou": Paired("mIoU per image", "segmentation", "higher"),
        "depth_rmse": Paired("metres of RMSE per image", "depth", "lower"),
    },
    objectives={"miou": (1, "mIoU"), "depth_rmse": (-1, "RMSE (m)")},
    pareto_points=[
        [f"feedback.segmentation={segmentation}", f"feedback.depth={depth}"]
        for segmentation, depth in ((1, 0), (4, 1), (1, 1), (1, 4), (0, 1))
    ],
    columns={title: measure.cell for title, measure in _MEASURES.items()},
    measures=_MEASURES,
    curves={
        "loss": "training loss (DINO: nats per pair of views)",
        "tilt": "mean distance that features move",
        "mask": "mean of the mask",
        "value": "value of the task",
    },
    # No intervals: the metrics of a test set are not means over its images.
)
