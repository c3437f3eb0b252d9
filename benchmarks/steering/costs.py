"""FLOPs of the benchmark's steps at the shapes of a real learner.

The seconds of a learner of 0.25M parameters say little about a real one: a meta update takes half of its step, a tangent a
tenth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.shapes import LEARNERS, counted
from vpretrain.compare.entry import parse_entry
from vpretrain.config import Recipe
from vpretrain.language.arms import ARMS
from vpretrain.method.judgement import PAIRS
from vpretrain.recipe import with_overrides

_SHAPE = "0.5B (Qwen2.5)"
# How often each question of a judgement is asked in runs of 256 to 1,024 steps: after steps 8, 32 and 128, of a tilt that is in
# use the second one, too.
_JUDGEMENTS = (3, 2)


@dataclass(frozen=True)
class Costs:
    """FLOPs of an arm at the shapes of Qwen2.5-0.5B.

    Attributes:
        step: of an ordinary step.
        task: of the tangent or the designer of one step.
        update: of a meta update.
        agreement, gain: of the two questions of a judgement.
        always: whether every step has a task of its own, whatever alpha is.
    """

    step: float
    task: float = 0.0
    update: float = 0.0
    agreement: float = 0.0
    gain: float = 0.0
    always: bool = False

    @classmethod
    def of(cls, recipe: Recipe, arm: str) -> Costs:
        """Count an arm, perhaps with settings of its own.

        `selection` and `token-weights` are counted as `v`, since they need at least its tangents and meta updates.
        """
        entry = parse_entry(arm)
        kind = ARMS[entry.arm]
        charged = entry.arm if kind.designer or not kind.tangent else "v"
        own = with_overrides(recipe.model_dump(mode="json"), entry.settings)
        work = counted(own, LEARNERS[_SHAPE][0], charged)
        step = work.batch_size * work.accumulation * work.step_flops
        if not (kind.steered or kind.tangent):
            return cls(step)
        cost, rows = work.replicated, work.meta_rows
        of_agreement, of_gain = PAIRS
        return cls(
            step,
            task=work.batch_size * work.accumulation * work.designer_flops,
            update=work.feedback_rows * cost.feedback_flops + rows * cost.value_flops,
            agreement=of_agreement * cost.feedback_flops,
            gain=(of_gain + 2 * rows) * work.step_flops,  # whole gradients: of pairs, and of both tasks
            always=not kind.exact,
        )

    def affordable(self, flops: float, every_steps: int) -> int:
        """Return how many steps so many FLOPs pay for, with a meta update every r-th, if all are tilted."""
        agreements, gains = _JUDGEMENTS
        left = flops - agreements * self.agreement - gains * self.gain
        return int(left / (self.step + self.task + self.update / every_steps))

    def spent(self, lines: Iterable[dict[str, Any]]) -> float:
        """Return the FLOPs of a run, by the lines of its metrics."""
        flops, used = 0.0, False
        for line in lines:
            flops += self.step + self.task * (self.always or line.get("alpha", 0.0) > 0)
            flops += self.update * ("g_down_norm" in line)
            if "strength" in line:  # a judgement; its second question is asked of a tilt that was in use
                flops += self.agreement + self.gain * used
                used = line["strength"] > 0
        return flops
