"""The presentation of a vision evaluation's metrics in tables."""

from __future__ import annotations

from operator import methodcaller
from typing import Literal

from vpretrain.modality import Measure, Metrics, Paired
from vpretrain.vision.evaluation.retrieval import PROTOCOLS


def _measure(
    key: str, better: Literal["lower", "higher"], form: str = ".4f", unit: str = "", paired: str | None = None
) -> Measure:
    return Measure(methodcaller("get", key), form, better, unit, paired)


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
    headline="probes on the frozen backbone",
    cases="test_images",
    paired={
        "miou": Paired("mIoU per image", "segmentation", "higher"),
        "depth_rmse": Paired("metres per image", "depth", "lower"),
    },
    objectives={"miou": (1, "mIoU"), "depth_rmse": (-1, "RMSE (m)")},
    pareto_points=[
        [f"feedback.segmentation={segmentation}", f"feedback.depth={depth}"]
        for segmentation, depth in ((1, 0), (4, 1), (1, 1), (1, 4), (0, 1))
    ],
    columns={title: measure.cell for title, measure in _MEASURES.items()},
    measures=_MEASURES,
    curves={
        "loss": "training loss (nats per pair of views)",
        "tilt": "mean distance that features move",
        "mask": "mean of the mask",
        "value": "value of the task",
    },
    # No intervals: the metrics of a test set are not means over its images.
)
