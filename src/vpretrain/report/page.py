"""`vpretrain report`: one self-contained HTML file on runs and comparisons.

The template engine escapes everything from recipes, data and logs; plots are drawn here and embedded in the page.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from vpretrain.compare.alike import alike
from vpretrain.compare.changes import changes, subject
from vpretrain.compare.results import START
from vpretrain.compare.tables import signed
from vpretrain.console import working
from vpretrain.files import check_writable, write_whole
from vpretrain.modality import modality_of
from vpretrain.plain import without_folders
from vpretrain.plot import can_draw
from vpretrain.recipe import flat
from vpretrain.report import plots
from vpretrain.report.across import Across, across
from vpretrain.report.collect import Study, collect
from vpretrain.report.glossary import Glossary
from vpretrain.report.inspectors import TEMPLATES, TITLES, inspectors
from vpretrain.report.table import Table
from vpretrain.report.verdict import notes, verdict_lines, warnings
from vpretrain.run.card import HASHES, data_cells, setting
from vpretrain.tables import cells
from vpretrain.types import Json

_UNKNOWN = "not recorded"
_ATTEMPTS = 5  # problems whose attempts are shown
# The parts of a study, in their order; those of `_OPTIONAL` are left out if they are empty.
_PARTS = {
    "warnings": "Warnings",
    "further": "What else the comparison says",
    "results": "Results",
    "evaluation": "Evaluation along the runs",
    "probe": "Predicted and realised gain",
    "steps": "What the steps did",
    "cost": "Cost",
    "inspectors": "Inspectors",
    "settings": "Settings",
    "data": "Data and versions",
    "missing": "Not here",
}
_OPTIONAL = ("warnings", "further", "inspectors", "missing")
_OWN = ("name", "output", "arm", "seed")  # settings that always differ between the runs of a comparison


def report(directories: Sequence[Path], output: Path) -> Path:
    """Write a report on runs and comparisons.

    Args:
        directories: of runs, of comparisons, or both.
        output: the file.

    Raises:
        UserError: a directory is neither, a file in it is damaged, or the report cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> result = run_recipe(load_recipe("recipe.yaml"), overwrite=True)
        >>> report([result.recipe.directory], Path("report.html")).name
        'report.html'
    """
    studies = [collect(directory) for directory in directories]
    write_page(studies, across(studies), output)
    return output


def write_page(studies: Sequence[Study], together: Across | None, output: Path) -> None:
    """Write a report on studies, with what `across` says of them. Raises UserError, before any drawing, if it cannot."""
    check_writable(output, "--output")
    with working("drawing the report"):
        shown = [_study(study, number) for number, study in enumerate(studies, start=1)]
    arms = {name: arm.summary.replace("`", "") for study in studies for name, arm in study.recipe.arms.items()}
    made = {"version": version("vpretrain"), "date": datetime.now(UTC).date().isoformat()}
    page = TEMPLATES.get_template("page.html")
    write_whole(output, page.render(studies=shown, across=together, glossary=Glossary(arms), **made))


def _study(study: Study, number: int) -> Json:
    """Return the template's variables for a study."""
    draws = can_draw()
    said = verdict_lines(study)
    first, others = plots.steps(study) if draws else ([], [])
    shown = {
        "anchor": f"study-{number}",
        "name": study.recipe.name,
        "start": bool(study.start),
        "compared": study.compared,
        "kind": f"{'comparison' if study.compared else 'run'}, {study.recipe.modality}",
        "draws": draws,
        "verdict": said[0],
        "further": said[1:],
        "warnings": [line.replace("`", "") for line in warnings(study)],
        "notes": notes(study),
        "results": _results(study),
        "changes": _changes(study),
        "intervals": plots.differences(study) if draws and study.compared else [],
        "differences": _differences(study),
        "evaluation": plots.evaluation(study) if draws else [],
        "scores": _scores(study),
        "attempts": _attempts(study),
        "probe": plots.probe(study.probe) if draws and study.probe else [],
        "probed": study.probe.get("arm"),
        "steps": first,
        "other_steps": others,
        "cost": _cost(study),
        "profile": plots.profile(study.profile) if draws and study.profile else None,
        "phases": _phases(study.profile),
        "settings": _settings(study),
        "data": _data(study),
        "left_out": _left_out(study),
        "origin": _origin(study),
        "versions": Table("Versions", [["package", "version"], *map(list, study.results["versions"].items())]),
        "missing": study.missing,
        "inspectors": _inspectors(study),
    }
    return shown | {"parts": {name: title for name, title in _PARTS.items() if name not in _OPTIONAL or shown[name]}}


def _results(study: Study) -> Table | None:
    arms = study.results["arms"]
    if not arms:
        return None
    rows = cells(arms, study.recipe)
    title = [f"Results on {modality_of(study.recipe).metrics.headline(study.recipe)}"]
    title += ["step-0 is the untouched learner"] if study.start else []
    title += ["means over seeds"] if len(study.results["seeds"]) > 1 else []
    title += ["[ ] are 95 % intervals"] if any("[" in text for text in rows[-1][1:]) else []
    return Table("; ".join(title), rows)


def _changes(study: Study) -> Table | None:
    """Return every metric of the arm that the verdict is about beside the untouched learner's and the other arm's."""
    judged = subject(study.results, study.recipe) if study.compared else None
    if judged is None:
        return None
    arm, other = judged
    others = [name for name in dict.fromkeys((START, other)) if name in study.results["arms"]]
    others = [name for name in others if not alike(study.results, study.recipe, arm, name)]
    rows = [["figure", *others, arm, *(f"{arm} against {name}" for name in others)]]
    found = [{c.title: c for c in changes(study.results, study.recipe, arm, name)} for name in others]
    for title in dict.fromkeys(title for of_other in found for title in of_other):
        known = [of_other.get(title) for of_other in found]
        own = next(change.own for change in known if change)
        values = [*(change.other if change else "-" for change in known), own]
        rows.append([title, *values, *(f"{change.direction}{change.doubt}" if change else "-" for change in known)])
    return Table("What became better and what became worse", rows)


def _differences(study: Study) -> Table | None:
    """Return each arm's difference from those before it, at the end of the budget and matched."""
    if not study.compared:
        return None
    rows = [["arm", "minus", "figure", "compared", "difference", "95 % interval"]]
    matched = study.results.get("matched", {})
    for key, unit in study.results["of"].items():
        found = {"end of budget": study.results["differences"][key]}
        found |= {f"after {m['at']:,.0f} {axis}": m[key]["differences"] for axis, m in matched.items()}
        for when, of_arms in found.items():
            for a, b in itertools.combinations(of_arms, 2):
                if when != "end of budget" and alike(study.results, study.recipe, a, b):
                    continue  # the same model by then: all that could be read off is interpolation
                if (d := of_arms[b].get(a)) is not None:
                    mean, low, high = signed(d)
                    rows.append([b, a, unit, when, mean, f"[{low}, {high}]"])
    return Table("Differences, paired over seeds and cases", rows)


def _scores(study: Study) -> Table:
    """Return the points of the evaluation's curves."""
    unit = study.recipe.unit
    keys = list(modality_of(study.recipe).metrics.scores)
    rows = [["arm", "seed", "steps", "seconds", unit, *keys]]
    for arm, runs in study.runs.items():
        for run in runs:
            seed = "-" if arm == START else str(run.recipe.seed)
            lines = [{**line, "steps": line["step"] + 1} for line in run.scores] + ([run.result] if run.result else [])
            for line in lines:
                cost = [f"{line['steps']:,}", f"{line['seconds']:.1f}", f"{line[unit]:,}"]
                rows.append([arm, seed, *cost, *(_number(line.get(key)) for key in keys)])
    return Table("Evaluations along the runs, and at their ends", rows)


def _attempts(study: Study) -> Table | None:
    """Return the ends of the first attempts of each arm's first seed beside the true answers, as Pass@1 compared them."""
    problems = {arm: runs[0].result.get("problems", []) for arm, runs in study.runs.items() if runs}
    attempted = {arm: {one["key"]: one for one in of if "attempt" in one} for arm, of in problems.items()}
    found = {arm: of for arm, of in attempted.items() if of}
    answers = {key: one["answer"] for of in found.values() for key, one in of.items()}
    rows = [["true answer", *found]]
    for key, answer in list(answers.items())[:_ATTEMPTS]:
        rows.append([answer, *(_attempt(of[key]) if key in of else "-" for of in found.values())])
    return Table("Ends of attempts, and whether Pass@1 counts them as right", rows) if answers else None


def _attempt(problem: Json) -> str:
    return f"{'right' if problem['solved'] else 'wrong'}: ... {problem['attempt'].strip()}"


def _cost(study: Study) -> Table | None:
    """Return the time, throughput, meta updates, processes and memory of each run."""
    unit = study.recipe.unit
    runs = [run for of_arm in study.trained.values() for run in of_arm if run.result]
    if not runs:
        return None
    of_baseline = [run.result for run in study.runs.get(study.recipe.baseline, ()) if run.result]
    rates = [result[f"{unit}_per_s"] for result in of_baseline if result["steps"]]
    base = sum(rates) / len(rates) if rates else None
    share = [f"of {study.recipe.baseline}'s rate"] if base else []
    rows = [["run", "seconds", "steps", f"{unit}/s", *share, "seconds per step", "meta updates", "processes", "memory"]]
    for run in runs:
        result, rate = run.result, run.result[f"{unit}_per_s"]
        spent = [f"{result['seconds']:.1f}", f"{result['steps']:,}", _rounded(rate)]
        share = [f"{rate / base:.1%}" if rate else "-"] if base else []
        a_step = _rounded(result["seconds"] / result["steps"] if result["steps"] else None)
        others = [f"{result['meta_updates']:,}", str(result.get("processes", 1))]
        memory = f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append([run.directory.name, *spent, *share, a_step, *others, memory])
    return Table("What the runs took; evaluation, saving and loading are not counted", rows)


def _phases(found: Json) -> Table | None:
    if not found:
        return None
    from vpretrain.inspection.profile import phase_rows  # needs torch

    rows, added = phase_rows(found), found["added"]
    _, unit, _ = rows[0]
    total = f"{added['microseconds']:.2f} {unit}, {added['ratio']:.1%}"
    return Table(f"Phases of a step of {found['arm']}, added to ordinary pretraining: {total}", rows)


def _settings(study: Study) -> list[tuple[Table, bool]]:
    """Return the settings that are not defaults, those of single runs, and the rest, which is folded."""
    everything = flat(study.recipe.model_dump(mode="json"))
    changed = flat(study.recipe.model_dump(mode="json", exclude_defaults=True))
    head = ["setting", "value"]
    shown = [[name, setting(value)] for name, value in everything.items() if name in changed]
    rest = [[name, setting(value)] for name, value in everything.items() if name not in changed]
    own = [
        [run.directory.name, name, setting(value)]
        for runs in study.trained.values()
        for run in runs
        for name, value in flat(run.recipe.model_dump(mode="json", exclude=set(_OWN))).items()
        if everything.get(name) != value
    ]
    tables = [(Table("Settings that are not the defaults", [head, *shown]), False)]
    if own:
        tables.append((Table("Settings of single runs", [["run", *head], *own]), False))
    return [*tables, (Table("Settings that are the defaults", [head, *rest]), True)]


def _data(study: Study) -> Table | None:
    made = [run.provenance for runs in study.runs.values() for run in runs if run.provenance.get("data")]
    return Table(f"What identifies the data. {HASHES}", data_cells(made[0]["data"])) if made else None


def _origin(study: Study) -> Table:
    """Return when, by which source, on what hardware and with which seeds the runs were made."""
    made = [run.provenance for runs in study.trained.values() for run in runs if run.provenance]
    dates = sorted({str(one["date"]) for one in made if one.get("date")})
    rows = [["what", "value"]]
    rows.append(["date of the runs' ends", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else _UNKNOWN])
    for key in ("commit", "hardware"):
        found = dict.fromkeys(str(one[key]) for one in made if one.get(key))
        rows.append([key, "; ".join(found) or _UNKNOWN])
    rows.append(["vpretrain", str(study.results["versions"].get("vpretrain", _UNKNOWN))])
    rows.append(["seeds", ", ".join(map(str, study.results["seeds"]))])
    return Table("When, where and with what the runs were made", rows)


def _left_out(study: Study) -> Table | None:
    rows = [["run", "role", "source", "reason", "examples"]]
    for run in itertools.chain.from_iterable(study.trained.values()):
        for source, reasons in run.result.get("left_out", {}).items():
            role, _, origin = source.partition(" ")
            for reason, count in reasons.items():
                rows.append([run.directory.name, role, without_folders(origin), reason, f"{count:,}"])
    caption = "Examples that were met and not used; one of the stream counts again whenever it comes up"
    return Table(caption, rows) if len(rows) > 1 else None


def _inspectors(study: Study) -> list[tuple[str, list[Markup]]]:
    """Return the inspectors of each arm's first seed only: each loads a learner, and takes up to a megabyte."""
    runs = [of_arm[0].directory for of_arm in study.trained.values()]
    found = [(run.name, inspectors(run)) for run in runs]
    return [(f"{TITLES[study.recipe.modality]}: {name}", fragments) for name, fragments in found if fragments]


def _number(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
