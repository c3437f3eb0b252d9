"""The results of a comparison: means over seeds, differences between arms, arms at equal seconds and equal tokens."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from vpretrain.compare.entry import parse_entry
from vpretrain.compare.statistics import correct, interval, paired_difference
from vpretrain.config import Recipe
from vpretrain.files import Lines
from vpretrain.modality import Metrics, modality_of
from vpretrain.recipe import parse_recipe, with_overrides
from vpretrain.types import Json

START = "step-0"
_OF_ONE = ("arm", "seed", "warning", "left_out")  # figures of a run that have no mean
Runs = dict[str, list[Json]]
"""Results by arm, one per seed; the untouched learner has one for all seeds."""


def run_name(arm: str, seed: int, seeds: Sequence[int]) -> str:
    """Return the name of an arm's run, and of its directory; the arm may have its own settings."""
    name = parse_entry(arm).directory
    return name if len(seeds) == 1 else f"{name}.{seed}"


def summarise(runs: Runs, scores: Mapping[str, Sequence[Lines]], recipe: Recipe) -> Json:
    """Return all arms' metrics as means over seeds, and the differences between arms, paired over seeds and cases.

    `scores` are the evaluations along each of the runs.
    """
    metrics = modality_of(recipe).metrics
    results: Json = {"arms": {arm: over_seeds(of_arm, metrics) for arm, of_arm in runs.items()}}
    cases = {arm: [run[metrics.cases] for run in of_arm] for arm, of_arm in runs.items()}
    measured = [key for key in metrics.paired if any(key in case for case in cases[START][0])]
    results["differences"] = {key: _differences({a: values_of(c, key) for a, c in cases.items()}) for key in measured}
    keys = [key for key in measured if not metrics.paired[key].beside]
    results["of"] = {key: metrics.paired[key].unit for key in keys}
    domains = list(dict.fromkeys(case["domain"] for case in cases[START][0] if "domain" in case))
    if len(domains) > 1:
        results["by_domain"] = {domain: _by_domain(cases, keys, domain) for domain in domains}
    if recipe.evaluation.along and _constant_rates(runs, recipe):
        axes = ("seconds", recipe.unit)
        results["matched"] = {axis: _matched(runs, scores, axis, keys, metrics.cases) for axis in axes}
    trained = [arm for arm, found in results["arms"].items() if found.get("steps")]
    wanted, learned = pairs(trained, recipe.baseline), [(arm, START) for arm in trained]
    from_baseline = [(a, b) for a, b in wanted if b == recipe.baseline] or wanted
    domains_of_keys = [found[key]["differences"] for found in results.get("by_domain", {}).values() for key in keys]
    axes_of_keys = [[found[key]["differences"] for key in keys] for found in results.get("matched", {}).values()]
    if any(len(of_arm) > 1 for of_arm in runs.values()):
        results["over_seeds"] = _over_seeds(runs, metrics)
        for together in (from_baseline, learned):
            correct(part[a][b] for part in results["over_seeds"].values() for a, b in together)
    at_end, beside = (
        [found for key, found in results["differences"].items() if (key in keys) is main] for main in (True, False)
    )
    for read_together in (at_end, domains_of_keys, *axes_of_keys):
        correct(part[a][b] for part in read_together for a, b in wanted)
    correct(part[a][b] for part in beside for a, b in from_baseline)
    # What was learned at all is another question than which arm is better, and counts apart.
    for part in (at_end, beside):
        correct(found[a][b] for found in part for a, b in learned)
    return results


def pairs(trained: Iterable[str], baseline: str) -> list[tuple[str, str]]:
    """Return the pairs whose differences are reported: every arm minus the baseline, then V minus every other."""
    arms = list(trained)
    pairs = [(name, baseline) for name in arms if name != baseline and baseline in arms]
    return pairs + [("v", name) for name in arms if "v" in arms and name not in ("v", baseline)]


def over_seeds(runs: Sequence[Json], metrics: Metrics) -> Json:
    """Return an arm's means over its seeds, with each seed's results if there are several."""
    own = [{key: value for key, value in run.items() if key not in ("name", metrics.cases)} for run in runs]
    if len(own) == 1:
        return own[0]
    numbers = {key: _mean([run.get(key) for run in own]) for key in own[0] if key not in _OF_ONE}
    warned = {run["seed"]: run["warning"] for run in own if "warning" in run}
    some = next((f"{len(warned)} of {len(own)} seeds, such as {seed}: {text}" for seed, text in warned.items()), None)
    summary = {"arm": own[0]["arm"], **numbers, **({"warning": some} if some else {})}
    intervals = {
        title: dict(zip(("low", "high"), interval(values), strict=True))
        for title, values in _by_seed(own, metrics).items()
    }
    return summary | metrics.intervals([run[metrics.cases] for run in runs]) | {"intervals": intervals, "runs": own}


def _by_seed(runs: Sequence[Json], metrics: Metrics) -> dict[str, list[list[float]]]:
    """Return the measures that are of no single case, such as retention NLL, by title: [S, 1], those that all seeds have."""
    values = {title: [m.of(run) for run in runs] for title, m in metrics.measures.items() if m.paired is None}
    return {title: [[x] for x in of if x is not None] for title, of in values.items() if None not in of}


def _over_seeds(runs: Runs, metrics: Metrics) -> Json:
    """Return the differences between arms in these measures, paired over seeds."""
    by_arm = {arm: _by_seed(of_arm, metrics) for arm, of_arm in runs.items()}
    titles = [title for title in by_arm[START] if all(title in found for found in by_arm.values())]
    return {title: _differences({arm: found[title] for arm, found in by_arm.items()}) for title in titles}


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of dictionaries name by name; None if a value is missing or not a number."""
    if all(isinstance(value, dict) for value in values):
        return {name: _mean([value.get(name) for value in values]) for name in values[0]}
    return mean(values) if all(isinstance(value, int | float) for value in values) else None


def _by_domain(cases: Mapping[str, Sequence[Sequence[Json]]], keys: Sequence[str], domain: str) -> Json:
    """Return each metric's comparison of all arms in a domain."""
    own = {arm: [[case for case in run if case["domain"] == domain] for run in runs] for arm, runs in cases.items()}
    return {key: _compared({arm: values_of(runs, key) for arm, runs in own.items()}) for key in keys}


def _compared(values: Mapping[str, list[list[float]]]) -> Json:
    """Return each arm's mean over seeds and cases, and its difference from every other arm."""
    means = {arm: mean(itertools.chain.from_iterable(runs)) for arm, runs in values.items()}
    return {"arms": means, "differences": _differences(values)}


def values_of(runs: Sequence[Sequence[Json]], key: str) -> list[list[float]]:
    """Return a metric of every case that has it, [S, N]: the same cases in every run."""
    return [list(by_case(run, key).values()) for run in runs]


def by_case(run: Sequence[Json], key: str) -> dict[str, float]:
    """Return a metric by the names of the cases that have it; of images of one scene, which are one case, their mean."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for name, case in zip(names_of(run), run, strict=True):
        if case.get(key) is not None:
            found[name].append(case[key])
    return {name: mean(values) for name, values in found.items()}


def names_of(run: Sequence[Json]) -> list[str]:
    """Return what tells the cases apart: an image's scene; a problem's key, with a number if it comes again; else the place."""
    found: Counter[str] = Counter()
    names = []
    for place, case in enumerate(run):
        name = str(case.get("scene", case.get("key", place)))
        found[name] += 1
        names.append(name if "scene" in case or found[name] == 1 else f"{name} ({found[name]})")
    return names


def in_words(run: Sequence[Json], metrics: Metrics) -> str:
    """Return what the cases are, as a sentence names them: scenes, where these have several images."""
    return "scenes" if len(set(names_of(run))) < len(run) else metrics.cases_in_words


def _differences(values: Mapping[str, list[list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return differences: arm -> other arm -> mean, low, high, p. The untouched learner is the same for every seed."""
    seeds = max(map(len, values.values()))
    full = {arm: runs if len(runs) == seeds else runs * seeds for arm, runs in values.items()}
    differences: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in full}
    for a, b in itertools.combinations(full, 2):
        one = differences[a][b] = paired_difference(full[a], full[b])
        differences[b][a] = {"mean": -one["mean"], "low": -one["high"], "high": -one["low"], "p": one["p"]}
    return differences


def _constant_rates(arms: Iterable[str], recipe: Recipe) -> bool:
    """Whether the learning rate falls in none of the arms, of which some may have a schedule of their own."""
    entries = [entry for entry in map(parse_entry, arms) if entry.settings]
    settings = [[f"arm={entry.arm}", *entry.settings] for entry in entries]
    own = [parse_recipe(with_overrides(recipe.model_dump(mode="json"), of_arm)) for of_arm in settings]
    return all(one.optimizer.schedule == "constant" for one in (recipe, *own))


def _matched(runs: Runs, scores: Mapping[str, Sequence[Lines]], axis: str, keys: Sequence[str], cases: str) -> Json:
    """Return the arms' metrics at equal cost, interpolated linearly between the evaluations on their curves.

    The learning rate must be constant after warm-up, so that one run has a valid result at any number of tokens or seconds: if
    it falls, then at equal tokens it has fallen further in an arm that makes fewer steps.
    A falling curve lies below its chords, so an arm interpolated between two evaluations looks a little worse than it was,
    beside one at the end of its curve; more points reduce this.
    """
    start = {**runs[START][0], axis: 0}
    curves = {
        arm: [[start, *lines, run] for lines, run in zip(scores[arm], of_arm, strict=True)]
        for arm, of_arm in runs.items()
        if arm != START
    }
    end = min(curve[-1][axis] for of_arm in curves.values() for curve in of_arm)
    matched: Json = {"at": end}
    for key in keys:
        values = {arm: [read_off(curve, axis, end, cases, key) for curve in of] for arm, of in curves.items()}
        matched[key] = _compared(values)
    return matched


def read_off(curve: Sequence[Json], axis: str, end: float, cases: str, key: str) -> list[float]:
    """Return a metric of every case that has it, where a curve's `axis` is `end`."""
    for before, after in itertools.pairwise(curve):
        if end <= after[axis]:
            fraction = (end - before[axis]) / (after[axis] - before[axis]) if after[axis] > before[axis] else 1.0
            ((starts,), (ends,)) = values_of([before[cases]], key), values_of([after[cases]], key)
            return [(1 - fraction) * one + fraction * other for one, other in zip(starts, ends, strict=True)]
    raise AssertionError("the curve ends before")
