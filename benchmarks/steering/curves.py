"""The time that an arm takes to one-hot's end, read along the runs."""

from __future__ import annotations

import itertools
from statistics import mean
from typing import Any

from benchmarks.steering.runs import read_result
from vpretrain.compare.results import START, run_name
from vpretrain.config import Recipe
from vpretrain.files import read_lines

Curve = list[dict[str, Any]]
"""The evaluations of one run, from the untouched learner's to the last."""


class Curves:
    """The curves of all runs of a comparison, whose results are those of `compare`."""

    def __init__(self, recipe: Recipe, results: dict[str, Any]) -> None:
        self._directory, self._seeds = recipe.directory, results["seeds"]
        self._start = read_result(recipe.directory / START) | {"seconds": 0.0}
        self._one_hot = self._of("one-hot")

    def seconds_to_one_hot(self, arm: str) -> dict[str, Any]:
        """Return an arm's training seconds until one-hot's final NLL with the same seed, linear between evaluations."""
        seconds, curves = [], self._of(arm)
        for curve, own in zip(curves, self._one_hot, strict=True):
            goal = own[-1]["answer_nll"]
            for before, after in itertools.pairwise(curve):
                high, low = before["answer_nll"], after["answer_nll"]
                if low <= goal:
                    share = (high - goal) / (high - low) if high > goal else 0.0
                    seconds.append(before["seconds"] + share * (after["seconds"] - before["seconds"]))
                    break
        return {"mean": mean(seconds) if seconds else None, "reached": len(seconds), "of": len(curves)}

    def _of(self, arm: str) -> list[Curve]:
        runs = [self._directory / run_name(arm, seed, self._seeds) for seed in self._seeds]
        return [[self._start, *read_lines(run / "scores.jsonl"), read_result(run)] for run in runs]
