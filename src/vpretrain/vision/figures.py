"""How tables show what a vision evaluation measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEADLINE = "probes on the frozen backbone"
CASES = "pictures"  # what is evaluated one by one
PAIRED = "miou"  # of every case: what arms are compared by
UNIT = "mIoU a picture"

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mIoU": lambda arm: f"{arm['miou']:.4f}",
    "RMSE": lambda arm: f"{arm['depth_rmse']:.4f} m",
    "AbsRel": lambda arm: f"{arm['depth_abs_rel']:.4f}",
    "delta_1": lambda arm: f"{arm['depth_delta_1']:.4f}",
    "accuracy": lambda arm: f"{arm['accuracy']:.1%}",
    "mAP": lambda arm: "-" if arm["retrieval_map"] is None else f"{arm['retrieval_map']:.4f}",
}
CURVES = {"loss": "training loss (nats a pair)", "mask_B": "mean of the mask", "value": "value of the task"}
