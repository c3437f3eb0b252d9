"""The arms of vision runs."""

from __future__ import annotations

from dataclasses import dataclass

from vpretrain import arms
from vpretrain.arms import by_name
from vpretrain.types import Keywords


@dataclass(frozen=True)
class Arm(arms.Arm):
    """An arm of vision.

    Attributes:
        without_value: whether the designer is trained by its regulariser alone.
    """

    without_value: bool = False


_LEARNED: Keywords = {"construction": "LearnedViews", "designer": True, "steered": True}

ARMS = by_name(
    Arm("v", "global crops seen through the designer's mask: blurred where it is low", **_LEARNED),
    Arm("fixed", "the crops as they are: ordinary continued pretraining", "Fixed"),
    Arm(
        "random-mask",
        "a random mask with as much kept sharp as `v` has kept",
        "RandomMask",
        follows_v=lambda v: [f"designer.keep={v['mean_mask']:.6f}"],
    ),
    Arm("regulariser-only", "`v` without its value: what the regulariser does alone", without_value=True, **_LEARNED),
    Arm("random-feedback", "`v` with noise in place of the feedback's gradients", random_feedback=True, **_LEARNED),
)
