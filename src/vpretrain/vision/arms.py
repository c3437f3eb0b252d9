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
        exact: whether its targets are the exact task, with a strength.
        without_value: whether the designer is trained by its regulariser alone.
    """

    exact: bool = False
    without_value: bool = False


_EXACT: Keywords = {"construction": "ExactTask", "exact": True, "steered": True}
_LEARNED: Keywords = {"construction": "LearnedViews", "designer": True, "steered": True}

ARMS = by_name(
    Arm(
        "v",
        "the exact task: the base task, with targets moved along the feedback as far as is judged in the run to help",
        **_EXACT,
    ),
    Arm("fixed", "the teacher's own targets on the crops as they are: ordinary continued pretraining", "Fixed"),
    Arm("v-paper", "the paper's designer: global crops seen through its mask, blurred where that is low", **_LEARNED),
    Arm(
        "random-mask",
        "a random mask with as much kept sharp as `v-paper` has kept",
        "RandomMask",
        follows=("v-paper", lambda designed: [f"designer.keep={designed['mean_mask']:.6f}"]),
    ),
    Arm(
        "regulariser-only",
        "`v-paper` without its value: what the regulariser does alone",
        without_value=True,
        **_LEARNED,
    ),
    Arm("random-feedback", "`v` with noise in place of the feedback's gradients", random_feedback=True, **_EXACT),
)
