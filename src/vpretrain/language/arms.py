"""The arms of language runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vpretrain import arms
from vpretrain.arms import by_name
from vpretrain.types import Keywords


@dataclass(frozen=True)
class Arm(arms.Arm):
    """An arm of language runs.

    Attributes:
        exact: whether its targets are the exact task, with a strength.
        tangent: whether it takes a tangent at every step.
        candidates: whether its targets lie on K candidates per token.
        mixed_in: whether the feedback pairs are in its stream.
        direct: the method by which TRL trains it, in place of our loop.
        direct_on: the pairs that TRL trains it on.
        options: arguments of its construction.
    """

    exact: bool = False
    tangent: bool = False
    candidates: bool = False
    mixed_in: bool = False
    direct: Literal["sft", "grpo"] | None = None
    direct_on: Literal["stream", "feedback"] = "stream"
    options: Mapping[str, object] | None = None

    @property
    def trains_alone(self) -> bool:
        """Whether TRL trains it."""
        return self.direct is not None


_EXACT: Keywords = {"steered": True, "exact": True, "tangent": True, "candidates": True}
_EXACT_TASK: Keywords = {"construction": "ExactTask", **_EXACT}
# The paper's V as printed.
PAPER: Keywords = {"align": "dot", "metric": "identity", "penalty": 0.0, "subset": "last-2"}

ARMS = by_name(
    Arm(
        "v",
        "the exact task: one-hot tilted along the feedback over the learner's top K, with a weight that is judged in the run",
        **_EXACT_TASK,
    ),
    Arm("one-hot", "the true next token: ordinary continued pretraining", "OneHot"),
    Arm(
        "uniform",
        "(1 - alpha) one-hot + alpha r: r is uniform over the top K, alpha constant",
        "Smoothing",
        candidates=True,
        options={"reference": "uniform"},
    ),
    Arm(
        "self-distillation",
        "the same with the learner's own distribution as r",
        "Smoothing",
        candidates=True,
        options={"reference": "self"},
    ),
    Arm("random-feedback", "`v` with noise in place of the feedback's gradients", random_feedback=True, **_EXACT_TASK),
    Arm(
        "selection",
        "one-hot, on the rows of each micro-batch whose own gradient aligns best with the feedback",
        "Selection",
        tangent=True,
        candidates=True,
    ),
    Arm(
        "token-weights",
        "one-hot, each token weighted by how well its own gradient aligns with the feedback",
        "TokenWeights",
        tangent=True,
        candidates=True,
    ),
    Arm("mixed-in", "one-hot; a tenth of the stream's rows are the feedback pairs themselves", "OneHot", mixed_in=True),
    Arm("v-mixed-in", "`v` on the stream of `mixed-in`", mixed_in=True, **_EXACT_TASK),
    Arm("v-exact", "the same as `v` today: name it if a later `v` must not replace it", **_EXACT_TASK),
    Arm("v-learned", "`v-exact` with a designer's scores on top", "ResidualTargets", designer=True, **_EXACT),
    Arm(
        "v-paper",
        "the paper's designer as printed: (1 - alpha) one-hot + alpha r; the designer gives alpha and an unrestricted r",
        "LearnedTargets",
        designer=True,
        steered=True,
        candidates=True,
        value=PAPER,
    ),
    Arm("sft", "supervised training by TRL on the stream's pairs, for comparison", "OneHot", direct="sft"),
    Arm(
        "grpo",
        "reinforcement learning by TRL on the stream's problems, with a right answer as reward",
        "OneHot",
        direct="grpo",
    ),
    Arm("sft-feedback", "`sft` on the feedback pairs", "OneHot", direct="sft", direct_on="feedback"),
    Arm("grpo-feedback", "`grpo` on the feedback's problems", "OneHot", direct="grpo", direct_on="feedback"),
)
