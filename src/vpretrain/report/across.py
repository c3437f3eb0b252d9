"""Comparisons beside each other: results, the settings in which they differ, and differences where the cases are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from vpretrain.compare.changes import relation
from vpretrain.compare.results import START, by_case, in_words
from vpretrain.compare.statistics import correct, paired_difference
from vpretrain.compare.tables import interval, signed
from vpretrain.modality import Metrics, modality_of
from vpretrain.recipe import flat
from vpretrain.report.collect import Run, Study
from vpretrain.report.table import Table
from vpretrain.run.card import setting
from vpretrain.tables import cells
from vpretrain.types import Json

_NAMES = {"name", "output", "arm", "seed"}


@dataclass(frozen=True)
class Across:
    """Several comparisons side by side."""

    lines: Sequence[str]  # the differences by the first metric, in words
    results: Table  # a row for each arm of each comparison
    settings: Table | None  # the settings in which the comparisons differ; None: there are none
    differences: Table | None  # of each arm between the first comparison and the others; None: no case is in both


def across(studies: Sequence[Study]) -> Across | None:
    """Put comparisons of one modality beside each other; None if there are fewer than two. Single runs are left out."""
    compared = [study for study in studies if study.compared]
    if len(compared) < 2 or len({study.recipe.modality for study in compared}) > 1:
        return None
    labelled = dict(zip(_labels(compared), compared, strict=True))
    lines, differences = _differences(labelled)
    return Across(lines, _results(labelled), _settings(labelled), differences)


def _labels(studies: Sequence[Study]) -> list[str]:
    """Return the studies' names, with their numbers where two have the same."""
    names = [study.recipe.name for study in studies]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _results(studies: Mapping[str, Study]) -> Table:
    found = {label: cells(study.results["arms"], study.recipe) for label, study in studies.items()}
    columns = list(dict.fromkeys(name for head, *_ in found.values() for name in head[1:]))
    by_arm = {
        label: {row[0]: dict(zip(head, row, strict=True)) for row in rows} for label, (head, *rows) in found.items()
    }
    rows = [["arm", "comparison", *columns]]
    for arm in dict.fromkeys(arm for arms in by_arm.values() for arm in arms):
        for label, arms in by_arm.items():
            if arm in arms:
                rows.append([arm, label, *(arms[arm].get(column, "-") for column in columns)])
    return Table("Results side by side", rows)


def _settings(studies: Mapping[str, Study]) -> Table | None:
    settings = [flat(study.recipe.model_dump(mode="json", exclude=_NAMES)) for study in studies.values()]
    rows = [["setting", *studies]]
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [setting(one[name]) if name in one else "-" for one in settings]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return Table("Settings in which the comparisons differ", rows) if len(rows) > 1 else None


def _differences(studies: Mapping[str, Study]) -> tuple[list[str], Table | None]:
    """Return the differences of each arm, every comparison minus the first, in words and as a table."""
    (first, base), *others = studies.items()
    metrics = modality_of(base.recipe).metrics
    found: list[tuple[str, str, str, Json]] = []
    for label, study in others:
        for arm in (arm for arm in base.runs if arm in study.runs):
            for key in metrics.paired:
                if (difference := _difference(base, study, arm, key, metrics)) is not None:
                    found.append((arm, label, key, difference))
    for beside in (False, True):
        for untouched in (False, True):
            correct(
                d for arm, _, key, d in found if metrics.paired[key].beside is beside and (arm == START) is untouched
            )
    if not found:
        others_too = ", ".join(label for label, _ in others)
        return [f"no differences: no arm has two cases that are known to be the same in {first} and {others_too}"], None
    rows = [["arm", "difference", "figure", "mean", "95 % interval", "paired over", "so it"]]
    lines = []
    for arm, label, key, d in found:
        paired = metrics.paired[key]
        so = relation(d, paired.better)
        mean, low, high = signed(d)
        rows.append([arm, f"{label} minus {first}", paired.unit, mean, f"[{low}, {high}]", d["over"], f"{so} {first}"])
        if not paired.beside:
            lines.append(f"{arm}, {label} minus {first}: {interval(d, paired.unit)}; {label} {so} {first}")
    return lines, Table("Differences between comparisons, where the cases are the same", rows)


def _difference(base: Study, other: Study, arm: str, key: str, metrics: Metrics) -> Json | None:
    """Return an arm's difference over the cases that all its runs share, and over the seeds that both comparisons have.

    Without such a seed each case is averaged over seeds first, and the interval says nothing about other seeds.
    """
    untouched = arm == START  # the same for every seed
    runs = [
        {0 if untouched else run.recipe.seed: run for run in study.runs[arm] if run.result} for study in (base, other)
    ]
    if not all(runs):
        return None
    by_seed = [
        {seed: by_case(run.result.get(metrics.cases, ()), key) for seed, run in of_study.items()} for of_study in runs
    ]
    keys = [
        case for case in next(iter(by_seed[0].values())) if all(case in of for one in by_seed for of in one.values())
    ]
    if len(keys) < 2 or not (_keyed(runs, metrics) or _measured_on(base) == _measured_on(other)):
        return None
    seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
    values = [[[of_study[seed][case] for case in keys] for seed in seeds] for of_study in by_seed]
    if not seeds:
        values = [[[mean(of[case] for of in of_study.values()) for case in keys]] for of_study in by_seed]
    seeds_too = f" and {len(seeds)} seeds" if len(seeds) > 1 else "" if seeds else ", means over seeds"
    cases = in_words(next(iter(runs[0].values())).result[metrics.cases], metrics)
    return {**paired_difference(values[1], values[0]), "over": f"{len(keys)} {cases}{seeds_too}"}


def _measured_on(study: Study) -> Json:
    return study.recipe.evaluation.model_dump(exclude={"points"})  # how often changes no case


def _keyed(runs: Sequence[Mapping[int, Run]], metrics: Metrics) -> bool:
    every = [run for of_study in runs for run in of_study.values()]
    return all("key" in case for run in every for case in run.result.get(metrics.cases, ()))
