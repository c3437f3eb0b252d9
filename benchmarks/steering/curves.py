"""What is read along the runs: the time to one-hot's end, and differences from one-hot after equal tokens and equal FLOPs.

The seconds of a learner of 0.25M parameters say little about a real one: a meta update takes half of its step. So the FLOPs are
those that the same steps take at the shapes of Qwen2.5-0.5B.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.scaling import LEARNERS, counted
from vpretrain.compare.entry import parse_entry
from vpretrain.compare.results import START, read_off, run_name
from vpretrain.compare.statistics import paired_difference
from vpretrain.config import Recipe
from vpretrain.files import read_lines
from vpretrain.language.arms import ARMS
from vpretrain.method.meta import PAIRS
from vpretrain.recipe import with_overrides

_SHAPE = "0.5B (Qwen2.5)"
AXES = ("tokens", "flops")
Curve = list[dict[str, Any]]
"""The evaluations of one run, from the untouched learner's to the last."""


class Curves:
    """The curves of all runs of a comparison.

    Args:
        recipe: that the arms share.
        results: of `compare`.
    """

    def __init__(self, recipe: Recipe, results: dict[str, Any]) -> None:
        self.recipe, self.seeds = recipe, results["seeds"]
        self._start = _result(recipe.directory / START) | {"seconds": 0.0, "tokens": 0, "flops": 0.0}

    @cached_property
    def one_hot(self) -> list[Curve]:
        """Those of one-hot."""
        return self.of("one-hot")

    def of(self, arm: str) -> list[Curve]:
        """Return an arm's curves, one per seed."""
        found, costs = [], Costs.of(self.recipe, arm)
        for seed in self.seeds:
            directory = self.recipe.directory / run_name(arm, seed, self.seeds)
            lines = [*read_lines(directory / "scores.jsonl"), _result(directory)]
            spent = list(costs.spent(read_lines(directory / "metrics.jsonl")))
            flops = [max((flops for tokens, flops in spent if tokens <= line["tokens"]), default=0.0) for line in lines]
            found.append([self._start, *(line | {"flops": n} for line, n in zip(lines, flops, strict=True))])
        return found

    def seconds_to_one_hot(self, curves: list[Curve]) -> dict[str, Any]:
        """Return the training seconds until one-hot's final NLL with the same seed, linear between evaluations."""
        seconds = []
        for curve, own in zip(curves, self.one_hot, strict=True):
            goal = own[-1]["answer_nll"]
            for before, after in itertools.pairwise(curve):
                high, low = before["answer_nll"], after["answer_nll"]
                if low <= goal:
                    share = (high - goal) / (high - low) if high > goal else 0.0
                    seconds.append(before["seconds"] + share * (after["seconds"] - before["seconds"]))
                    break
        return {"mean": mean(seconds) if seconds else None, "reached": len(seconds), "of": len(curves)}

    def minus_one_hot(self, curves: list[Curve], axis: str) -> dict[str, float]:
        """Return the difference in NLL from one-hot where both runs of a seed have made the same number of tokens or FLOPs: at
        the end of the one that made fewer."""
        ends = [min(curve[-1][axis], own[-1][axis]) for curve, own in zip(curves, self.one_hot, strict=True)]
        ours, theirs = (
            [read_off(curve, axis, end, "problems", "nll") for curve, end in zip(each, ends, strict=True)]
            for each in (curves, self.one_hot)
        )
        return paired_difference(ours, theirs)


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

    def spent(self, lines: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
        """Yield tokens and FLOPs after each line of a run's metrics."""
        flops, used = 0.0, False
        for line in lines:
            flops += self.step + self.task * (self.always or line.get("alpha", 0.0) > 0)
            flops += self.update * ("g_down_norm" in line)
            if "strength" in line:  # a judgement; its second question is asked of a tilt that was in use
                flops += self.agreement + self.gain * used
                used = line["strength"] > 0
            yield line["tokens"], flops


def _result(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return found
