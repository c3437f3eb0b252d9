"""The result of a study, in a sentence with its interval, what became worse, and the notes and warnings beside it."""

from __future__ import annotations

import itertools

from vpretrain.compare.alike import alike, trained_as
from vpretrain.compare.changes import changes, excludes_0, relation, subject
from vpretrain.compare.results import START, in_words, names_of
from vpretrain.compare.tables import by_minutes, interval, of_seeds, remarks, unequal
from vpretrain.modality import modality_of
from vpretrain.plain import counted
from vpretrain.report.collect import Study
from vpretrain.types import Json


def verdict_lines(study: Study) -> list[str]:
    """Return the comparison of V with the baseline (or see `subject`) in sentences.

    The first says which arm is better, by how much, and whether that is certain; the others what else was measured or became
    worse, and how the pair compares after equal seconds or tokens if that differs. An arm that trained as the baseline
    throughout is not compared with it: at equal steps both are the same model.
    """
    if not study.compared:
        return [_of_run(study)]
    judged = subject(study.results, study.recipe)
    if judged is None:
        return ["Nothing was trained, or nothing measured, that could be compared."]
    a, b = judged
    base = trained_as(study.results, study.recipe, a)
    lines = [] if base == a else [_untilted(a, base)]
    lines += [_steps_alone(study, a, b)] if alike(study.results, study.recipe, a, b) else _difference(study, a, b)
    return [*lines, *_worse(study, a, b)]


def _untilted(arm: str, base: str) -> str:
    return (
        f"{arm} trained exactly as {base} throughout: the feedback never moved its targets, so that this comparison says "
        "nothing about V."
    )


def _steps_alone(study: Study, a: str, b: str) -> str:
    """Return what different numbers of steps did to two arms that trained alike."""
    key, unit = next(iter(study.results["of"].items()))
    made = f"{a} made {_made(study, a)}, {b} {_made(study, b)}"
    mean = study.results["differences"][key][a][b]["mean"]
    if not round(mean, 4):
        return f"{made}."
    return f"{made}; from such differences alone, {a} minus {b} is {mean:+.4f} {unit}."


def _difference(study: Study, a: str, b: str) -> list[str]:
    """Return how two arms compare: at the end of the budget, by each metric, and where they compare differently."""
    results, metrics = study.results, modality_of(study.recipe).metrics
    of = results["of"]
    text = "at the end of its budget" if b == START else f"after {_equal(study, a, b)}"
    lines = []
    beside = [key for key in results["differences"] if metrics.paired[key].beside]
    for number, key in enumerate([*of, *beside]):
        found, paired = results["differences"][key][a][b], metrics.paired[key]
        compared = relation(found, paired.better)
        if number == 0:
            text = f"{text}, {a} {compared} {b} on {paired.measured_on}: {a} minus {b} is "
            text += f"{interval(found, paired.unit)}, paired over {_over(study)} ({paired.better} is better)"
        else:
            text = f"on {paired.measured_on} {a} {compared} {b}: {interval(found, paired.unit)}"
            whole = results["differences"].get(paired.remainder_of, {}).get(a, {}).get(b)
            if whole is not None and excludes_0(whole):
                text += f"; {100 * max(0.0, found['mean'] / whole['mean']):.0f} % of the difference remains"
        lines.append(f"{text[0].upper()}{text[1:]}.")
    if b == START:
        return lines
    lines.append(f"{a} made {_made(study, a)}, {b} {_made(study, b)}.")
    for (axis, matched), key in itertools.product(results.get("matched", {}).items(), of):
        other, at_end = matched[key]["differences"][a][b], results["differences"][key][a][b]
        paired = metrics.paired[key]
        compared = relation(other, paired.better)
        if compared != relation(at_end, paired.better):
            where = f", on {paired.measured_on}," if len(of) > 1 else ""
            after = f"But after {matched['at']:,.0f} {axis}{where}"
            lines.append(f"{after} {a} {compared} {b}: {interval(other, paired.unit)}.")
    return lines


def _worse(study: Study, a: str, b: str) -> list[str]:
    """Return what became worse beside what `_difference` tells; a fall is named even where it may be chance."""
    others = {START: "the untouched learner", b: "the untouched learner" if b == START else b}
    sentences = []
    for other, name in others.items():
        if other not in study.results["arms"] or alike(study.results, study.recipe, a, other):
            continue
        found = changes(study.results, study.recipe, a, other)
        further = [change for change in found if not change.in_headline]
        worse = [change for change in further if change.direction == "worse"]
        if worse:
            listed = ", ".join(f"{c.title} {c.own} against {c.other}{c.doubt}" for c in worse)
            sentences.append(f"Worse than in {name}: {listed}.")
        elif further:
            nothing = "Nothing" if further == found else "Nothing else"
            sentences.append(f"{nothing} that was measured is worse than in {name}.")
    return sentences


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
    for what in ("versions", "data", "commit", "hardware"):
        known = [run for run in made if what in run.provenance]  # the last two are missing in older runs
        others = [run.directory.name for run in known if run.provenance[what] != known[0].provenance[what]]
        if others:
            difference = "another commit" if what == "commit" else f"other {what}"
            lines.append(f"{', '.join(others)}: made with {difference} than {known[0].directory.name}")
    return lines


def _of_run(study: Study) -> str:
    arm = study.recipe.arm
    if arm not in study.results["arms"]:
        return f"A run of {arm} that is not finished: it has no result yet."
    metrics, result = modality_of(study.recipe).metrics, study.results["arms"][arm]
    shown = {name: show(result) for name, show in metrics.columns.items()}
    name, value = next(((n, v) for n, v in shown.items() if v != "-"), ("its evaluation", "nothing"))
    if result.get("steps") == 0:
        return f"The untouched learner, with nothing to compare it with: {name} is {value}."
    return f"A run of {arm} alone, with nothing to compare it with, so it shows no effect: {name} is {value}."


def _equal(study: Study, a: str, b: str) -> str:
    arms = {name: study.results["arms"][name] for name in (a, b)}
    if not by_minutes(arms, study.recipe):
        return "equal steps"
    if unequal(arms, study.recipe):
        return f"unequal training times ({_seconds(arms[a])} and {_seconds(arms[b])} s)"
    return "equal training time"


def _seconds(arm: Json) -> str:
    """Return the training seconds of an arm as text, with digits enough to tell times that differ by a few per cent."""
    seconds = [run["seconds"] for run in arm.get("runs", [arm])]
    least, most = (f"{of:,.0f}" if of >= 100 else f"{of:.3g}" for of in (min(seconds), max(seconds)))
    return least if least == most else f"{least} to {most}"


def _made(study: Study, arm: str) -> str:
    """Return the steps and meta updates that an arm made, as text."""
    found = study.results["arms"][arm]
    steps, updates = found["steps"], found["meta_updates"]
    alike = len({(run["steps"], run["meta_updates"]) for run in found.get("runs", [found])}) == 1
    with_them = f" with {counted(round(updates), 'meta update')}" if updates else ""
    return f"{'' if alike else 'on average '}{counted(round(steps), 'step')}{with_them}"


def _over(study: Study) -> str:
    metrics = modality_of(study.recipe).metrics
    found = [run.result[metrics.cases] for of_arm in study.runs.values() for run in of_arm if run.result]
    counts = {f"{len(set(names_of(cases)))} {in_words(cases, metrics)}" for cases in found}
    cases = counts.pop() if len(counts) == 1 else metrics.cases_in_words
    return cases + of_seeds(len(study.results["seeds"]))
