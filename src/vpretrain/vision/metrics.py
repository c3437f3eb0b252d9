"""The presentation of a vision evaluation's metrics in tables."""

from __future__ import annotations

from functools import partial
from operator import methodcaller

from vpretrain.modality import Measure, Metrics, Paired, shown
from vpretrain.types import Json
from vpretrain.vision.evaluation.retrieval import PROTOCOLS


def _retrieval(arm: Json, place: str, protocol: str) -> str:
    return shown(arm.get(f"{place}_{protocol}"))


METRICS = Metrics(
    headline="probes on the frozen backbone",
    cases="pictures",
    paired={
        "miou": Paired("mIoU per image", "segmentation", "higher"),
        "depth_rmse": Paired("metres per image", "depth", "lower"),
    },
    objectives={"miou": (1, "mIoU"), "depth_rmse": (-1, "RMSE (m)")},
    pareto_points=[
        [f"feedback.segmentation={segmentation}", f"feedback.depth={depth}"]
        for segmentation, depth in ((1, 0), (4, 1), (1, 1), (1, 4), (0, 1))
    ],
    columns={
        "mIoU": lambda arm: shown(arm["miou"]),
        "RMSE": lambda arm: shown(arm["depth_rmse"], unit=" m"),
        "RMSE of images": lambda arm: shown(arm.get("depth_rmse_of_images"), unit=" m"),
        "AbsRel": lambda arm: shown(arm["depth_abs_rel"]),
        "delta_1": lambda arm: shown(arm["depth_delta_1"]),
        "accuracy": lambda arm: shown(arm["accuracy"], ".1%"),
        "mAP": lambda arm: shown(arm["retrieval_map"]),
        **{
            f"{place.title()} {protocol}": partial(_retrieval, place=place, protocol=protocol)
            for place in ("oxford", "paris")
            for protocol in PROTOCOLS
        },
    },
    measures={
        "mIoU": Measure(methodcaller("get", "miou"), ".4f", "higher"),  # of the set, not of each image
        "RMSE": Measure(methodcaller("get", "depth_rmse"), ".4f", "lower", " m"),
        "RMSE of images": Measure(
            methodcaller("get", "depth_rmse_of_images"), ".4f", "lower", " m", paired="depth_rmse"
        ),
        "AbsRel": Measure(methodcaller("get", "depth_abs_rel"), ".4f", "lower"),
        "delta_1": Measure(methodcaller("get", "depth_delta_1"), ".4f", "higher"),
        "accuracy": Measure(methodcaller("get", "accuracy"), ".1%", "higher"),
        "mAP": Measure(methodcaller("get", "retrieval_map"), ".4f", "higher"),
        **{
            f"{place.title()} {protocol}": Measure(methodcaller("get", f"{place}_{protocol}"), ".4f", "higher")
            for place in ("oxford", "paris")
            for protocol in PROTOCOLS
        },
    },
    curves={"loss": "training loss (nats per pair)", "mask": "mean of the mask", "value": "value of the task"},
    # No intervals: the metrics of a test set are not means over its images.
)
