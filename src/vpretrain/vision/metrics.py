"""How tables show what a vision evaluation measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

HEADLINE = "probes on the frozen backbone"
CASES = "pictures"  # what is evaluated one by one
PAIRED = {"miou": "mIoU a picture", "depth_rmse": "metres a picture"}  # of every case: what arms are compared by
ON = {"miou": "segmentation", "depth_rmse": "depth"}  # what each of them judges
BETTER = {"miou": "higher", "depth_rmse": "lower"}

# What is set to match V, and so runs after it: its settings from V's result.
FOLLOW_V: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "random-mask": lambda v: [f"designer.keep={v['mean_mask']:.6f}"]
}

# What is traded by the weights of the feedback: +1 where more is better, -1 where less is; with its title.
OBJECTIVES = {"miou": (1, "mIoU"), "depth_rmse": (-1, "RMSE (m)")}
PARETO_POINTS = [
    [f"feedback.segmentation={segmentation}", f"feedback.depth={depth}"]
    for segmentation, depth in ((1, 0), (4, 1), (1, 1), (1, 4), (0, 1))
]

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mIoU": lambda arm: _shown(arm["miou"]),
    "RMSE": lambda arm: _shown(arm["depth_rmse"], ".4f", " m"),
    "AbsRel": lambda arm: _shown(arm["depth_abs_rel"]),
    "delta_1": lambda arm: _shown(arm["depth_delta_1"]),
    "accuracy": lambda arm: _shown(arm["accuracy"], ".1%"),
    "mAP": lambda arm: _shown(arm["retrieval_map"]),
    "mAP easy": lambda arm: _shown(arm.get("retrieval_easy")),
    "medium": lambda arm: _shown(arm.get("retrieval_medium")),
    "hard": lambda arm: _shown(arm.get("retrieval_hard")),
}
CURVES = {"loss": "training loss (nats a pair)", "mask_B": "mean of the mask", "value": "value of the task"}


def intervals(seeds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """None: the figures of a test set are no means over its pictures."""
    return {}


def _shown(value: float | None, form: str = ".4f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
