"""The result of a study, in a sentence with its interval, and the notes and warnings beside it."""

from __future__ import annotations

import itertools

from vpretrain.compare.results import START, pairs
from vpretrain.compare.statistics import LEVEL
from vpretrain.compare.tables import by_minutes, interval, remarks, unequal
from vpretrain.modality import modality_of
from vpretrain.report.collect import Study


def verdict(study: Study) -> str:
    """Return a sentence: V against the baseline if both ran, else the first arm against the baseline or the untouched learner.

    If the same pair compares differently after equal seconds or tokens, the sentence includes that.
    """
    results, recipe, metrics = study.results, study.recipe, modality_of(study.recipe).metrics
    if not study.compared:
        return _of_run(study)
    trained = {name: arm for name, arm in results["arms"].items() if arm["steps"]}
    if not trained or not results["of"]:
        return "Nothing was trained, or nothing measured, that could be compared."
    of = results["of"]
    wanted = pairs(trained, recipe.baseline)
    v = ("v", recipe.baseline)
    a, b = v if v in wanted else wanted[0] if wanted else (next(iter(trained)), START)
    text = "at the end of its budget" if b == START else f"after {_equal(study, a, b)}"
    beside = [key for key in results["differences"] if metrics.paired[key].beside]
    for number, key in enumerate([*of, *beside]):
        found, paired = results["differences"][key][a][b], metrics.paired[key]
        relation = _relation(found, paired.better)
        if number == 0:
            text += f", {a} {relation} {b} on {paired.measured_on}: {a} minus {b} is "
            text += f"{interval(found, paired.unit)}, paired over {_over(study)} ({paired.better} is better)"
        else:
            text += f"; on {paired.measured_on} {a} {relation} {b}: {interval(found, paired.unit)}"
    if b == START:
        return text[0].upper() + text[1:] + "."
    text += f"; {a} made {_made(study, a)}, {b} {_made(study, b)}"
    for (axis, matched), key in itertools.product(results.get("matched", {}).items(), of):
        other, at_end = matched[key]["differences"][a][b], results["differences"][key][a][b]
        paired = metrics.paired[key]
        relation = _relation(other, paired.better)
        if relation != _relation(at_end, paired.better):
            where = f", on {paired.measured_on}," if len(of) > 1 else ""
            text += f"; but after {matched['at']:,.0f} {axis}{where} {a} {relation} {b}: {interval(other, paired.unit)}"
    return text[0].upper() + text[1:] + "."


def notes(study: Study) -> list[str]:
    """Return all differences, and the designer's metrics."""
    if not study.compared:
        return []
    return [line for line in remarks(study.results, study.recipe) if not line.startswith("warning")]


def warnings(study: Study) -> list[str]:
    """Return reasons to doubt the results."""
    runs = [run for of_arm in study.runs.values() for run in of_arm]
    if study.compared:
        said = remarks(study.results, study.recipe)
        lines = [line.removeprefix("warning: ") for line in said if line.startswith("warning")]
    else:
        lines = [run.result["warning"] for run in runs if "warning" in run.result]
    made = [run for run in runs if run.provenance]
    for what, difference in (("versions", "other versions"), ("data", "other data")):
        others = [run.directory.name for run in made[1:] if run.provenance.get(what) != made[0].provenance.get(what)]
        if others:
            lines.append(f"{', '.join(others)}: made with {difference} than {made[0].directory.name}")
    return lines


def _of_run(study: Study) -> str:
    arm = study.recipe.arm
    if arm not in study.results["arms"]:
        return f"A run of {arm} that is not finished: it has no result yet."
    metrics, result = modality_of(study.recipe).metrics, study.results["arms"][arm]
    shown = {name: show(result) for name, show in metrics.columns.items()}
    name, value = next(((n, v) for n, v in shown.items() if v != "-"), ("its evaluation", "nothing"))
    return f"A run of {arm} alone, with nothing to compare it with, so it shows no effect: {name} is {value}."


def _equal(study: Study, a: str, b: str) -> str:
    arms = {name: study.results["arms"][name] for name in (a, b)}
    if not by_minutes(arms, study.recipe):
        return "equal steps"
    if unequal(arms, study.recipe):
        return f"unequal training times ({arms[a]['seconds']:,.0f} and {arms[b]['seconds']:,.0f} s)"
    return "equal training time"


def _made(study: Study, arm: str) -> str:
    """Return the steps and meta updates that an arm made, as text."""
    found, updates = study.results["arms"][arm], study.results["arms"][arm]["meta_updates"]
    with_them = f" with {updates:,.0f} meta update{'' if updates == 1 else 's'}" if updates else ""
    return f"{found['steps']:,.0f} steps{with_them}"


def _relation(difference: dict[str, float], better: str) -> str:
    excludes_0 = difference["low"] > 0 or difference["high"] < 0  # not if a result is NaN
    if not excludes_0 or difference.get("p_holm", 0.0) >= 1 - LEVEL:
        return "cannot be told from"
    return "is better than" if (difference["mean"] < 0) == (better == "lower") else "is worse than"


def _over(study: Study) -> str:
    metrics, seeds = modality_of(study.recipe).metrics, len(study.results["seeds"])
    counts = {len(run.result[metrics.cases]) for of_arm in study.runs.values() for run in of_arm if run.result}
    cases = f"{counts.pop()} {metrics.cases}" if len(counts) == 1 else metrics.cases
    return cases + (f" and {seeds} seeds" if seeds > 1 else " of one seed, which says nothing about other seeds")
