"""The figures of a comparison: means over seeds, differences between arms, arms at equal seconds and equal tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from vpretrain.compare.entry import parse_entry
from vpretrain.config import Recipe
from vpretrain.files import Lines
from vpretrain.modality import Metrics, modality_of
from vpretrain.run.versions import versions

START = "step-0"
SECONDS_TOLERANCE = 0.03
Runs = dict[str, list[dict[str, Any]]]
"""Results by arm, one a seed; the untouched learner has one for all seeds."""


def run_name(arm: str, seed: int, seeds: Sequence[int]) -> str:
    """Of the run of an arm, with or without settings of its own, and of its directory."""
    name = parse_entry(arm).directory
    return name if len(seeds) == 1 else f"{name}.{seed}"


def summarise(runs: Runs, scores: Mapping[str, Sequence[Lines]], recipe: Recipe) -> dict[str, Any]:
    """Figures of all arms, means over seeds; every arm's difference from every other, paired over seeds and cases.

    Args:
        runs: the results.
        scores: evaluations along each of the runs.
        recipe: what they share.
    """
    metrics = modality_of(recipe).metrics
    results: dict[str, Any] = {"arms": {arm: over_seeds(of_arm, metrics) for arm, of_arm in runs.items()}}
    cases = {arm: [run[metrics.cases] for run in of_arm] for arm, of_arm in runs.items()}
    keys = [key for key in metrics.paired if any(key in case for case in cases[START][0])]
    results["differences"] = {key: _differences({a: _values(c, key) for a, c in cases.items()}) for key in keys}
    results["of"] = {key: metrics.paired[key] for key in keys}
    domains = list(dict.fromkeys(case["domain"] for case in cases[START][0] if "domain" in case))
    if len(domains) > 1:
        results["by_domain"] = {domain: _by_domain(cases, keys, domain) for domain in domains}
    if recipe.evaluation.points and recipe.optimizer.schedule == "constant":
        results["matched"] = {
            axis: _matched(runs, scores, axis, keys, metrics.cases) for axis in ("seconds", recipe.unit)
        }
    results["recipe"] = recipe.model_dump(mode="json")
    results["versions"] = versions()
    return results


def paired(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, float]:
    """Imported late: statistics needs torch, the rest of this file does not."""
    from vpretrain.compare.statistics import paired_difference

    return paired_difference(a, b)


def over_seeds(runs: Sequence[dict[str, Any]], metrics: Metrics) -> dict[str, Any]:
    """Of an arm: means over its seeds, and each seed's own if there are several."""
    own = [{key: value for key, value in run.items() if key not in ("name", metrics.cases)} for run in runs]
    if len(own) == 1:
        return own[0]
    numbers = {key: _mean([run.get(key) for run in own]) for key in own[0] if key not in ("arm", "seed", "warning")}
    warning = next((run["warning"] for run in own if "warning" in run), None)
    summary = {"arm": own[0]["arm"], **numbers, **({"warning": warning} if warning else {})}
    return summary | metrics.intervals([run[metrics.cases] for run in runs]) | {"runs": own}


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers, also name by name; None where any is missing or is no number."""
    if all(isinstance(value, dict) for value in values):
        return {name: _mean([value.get(name) for value in values]) for name in values[0]}
    return mean(values) if all(isinstance(value, int | float) for value in values) else None


def _by_domain(cases: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], keys: Sequence[str], domain: str) -> Any:
    """Of a domain: what each arm reached there, and its difference from every other."""
    own = {arm: [[case for case in run if case["domain"] == domain] for run in runs] for arm, runs in cases.items()}
    values = {key: {arm: _values(runs, key) for arm, runs in own.items()} for key in keys}
    return {
        key: {
            "arms": {arm: mean(itertools.chain.from_iterable(runs)) for arm, runs in of_key.items()},
            "differences": _differences(of_key),
        }
        for key, of_key in values.items()
    }


def _values(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[list[float]]:
    """A figure of every case that has it, [S, N]: the same cases in every run."""
    return [[case[key] for case in run if key in case] for run in runs]


def _differences(values: Mapping[str, list[list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each arm from every other: arm -> other -> mean, low, high. The untouched learner is the same for every seed."""
    seeds = max(map(len, values.values()))
    full = {arm: runs if len(runs) == seeds else runs * seeds for arm, runs in values.items()}
    differences: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in full}
    for a, b in itertools.combinations(full, 2):
        one = differences[a][b] = paired(full[a], full[b])
        differences[b][a] = {"mean": -one["mean"], "low": -one["high"], "high": -one["low"]}
    return differences


def _matched(
    runs: Runs, scores: Mapping[str, Sequence[Lines]], axis: str, keys: Sequence[str], cases: str
) -> dict[str, Any]:
    """What the arms had reached when all had spent as much: read off their curves, linear between evaluations.

    The rate must be constant after warm-up, so that one run shows where it stood after so many tokens, and after so many
    seconds: where it falls, an arm that makes fewer steps has fallen further at as many tokens.
    A falling curve lies below its chords, so that an arm read off between two evaluations looks a little worse than it was,
    next to one that is read off at its end: the more points, the less.
    """
    start = runs[START][0]
    trained = {arm: of_arm for arm, of_arm in runs.items() if arm != START}
    at = min(run[axis] for of_arm in trained.values() for run in of_arm)
    matched: dict[str, Any] = {"at": at}
    for key in keys:
        values = {
            arm: [
                _read_off([{**start, axis: 0}, *lines, run], axis, at, cases, key)
                for lines, run in zip(scores[arm], of_arm, strict=True)
            ]
            for arm, of_arm in trained.items()
        }
        means = {arm: mean(itertools.chain.from_iterable(of_arm)) for arm, of_arm in values.items()}
        matched[key] = {"arms": means, "differences": _differences(values)}
    return matched


def _read_off(curve: Sequence[Mapping[str, Any]], axis: str, at: float, cases: str, key: str) -> list[float]:
    """A figure of every case that has it, where a curve's `axis` is `at`."""
    for before, after in itertools.pairwise(curve):
        if at <= after[axis]:
            share = (at - before[axis]) / (after[axis] - before[axis]) if after[axis] > before[axis] else 1.0
            ((starts,), (ends,)) = _values([before[cases]], key), _values([after[cases]], key)
            return [(1 - share) * one + share * other for one, other in zip(starts, ends, strict=True)]
    raise AssertionError("the curve ends before")
