"""Read the files of a run or a comparison as plain data; whatever is missing is reported in a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpretrain.compare.results import START, over_seeds, run_name
from vpretrain.compare.tables import remarks
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import Lines, read_json
from vpretrain.modality import modality_of
from vpretrain.plain import nearest
from vpretrain.recipe import load_recipe
from vpretrain.run.find import SUMMARIES
from vpretrain.tables import cells
from vpretrain.types import Json

# The keys that a report needs in these files.
_COMPARED = {"arms", "differences", "of", "seeds", "versions"}
_PROBED = {"arm", "full", "subset", "steps"}
_PROFILED = {"arm", "unit", "phases", "added"}


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    directory: Path
    recipe: Recipe
    result: Json  # its metrics; empty while it is not finished
    metrics: Lines = field(repr=False)  # one line per step
    scores: Lines = field(repr=False)  # one line per evaluation along the run
    provenance: Json  # versions and fingerprints of its data; empty: not written


@dataclass(frozen=True)
class Study:
    """A comparison, or a run alone."""

    recipe: Recipe  # the one that its runs share
    results: Json  # as in results.json; of a run alone only its arm, once it is finished
    runs: Mapping[str, Sequence[Run]]  # by arm, one per seed
    probe: Json  # the result of `vpretrain probe`; empty: it was not run
    profile: Json  # that of `vpretrain profile`, likewise
    missing: list[str]  # what is missing, and how to create it

    @property
    def compared(self) -> bool:
        """Whether there is something to compare with."""
        return "differences" in self.results

    @property
    def start(self) -> Json:
        """Results of the untouched learner; empty: not measured."""
        return self.results["arms"].get(START, {})

    @property
    def trained(self) -> dict[str, Sequence[Run]]:
        """By arm, the runs that are there, without the untouched learner."""
        return {arm: runs for arm, runs in self.runs.items() if arm != START and runs}


def collect(directory: Path) -> Study:
    """Read a directory. Raises UserError if it is neither a run's nor a comparison's, or a file in it is damaged."""
    if (directory / "results.json").exists():
        return _comparison(directory)
    if (directory / "recipe.yaml").exists():
        if any((directory / name).exists() for name in ("metrics.jsonl", "result.json")):
            return _alone(directory)
        remedy = "finish the comparison with --resume, or name the directories of its runs"
        if any((directory / name).exists() for name in SUMMARIES):  # of pareto, posttrain or sweep
            remedy = "its own table and pictures are there; name the directories of its runs"
        raise UserError(f"{directory} has no results.json: {remedy}")
    remedy = "give what `vpretrain run` or `vpretrain compare` wrote, e.g. runs/quickstart"
    if directory.parent.is_dir() and not directory.exists():
        others = [path.name for path in directory.parent.iterdir()]
        if meant := nearest(directory.name, others):
            remedy = f"did you mean {directory.with_name(meant)}?"
    raise UserError(f"{directory} is neither a run's directory nor a comparison's: {remedy}")


def _comparison(directory: Path) -> Study:
    results = _json(directory / "results.json", _COMPARED)
    recipe, missing, runs = load_recipe(directory / "recipe.yaml"), [], {}
    try:
        cells(results["arms"], recipe), remarks(results, recipe)  # tried here, so that damage shows early
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _damaged(directory / "results.json") from None
    for arm in results["arms"]:
        names = [START] if arm == START else [run_name(arm, seed, results["seeds"]) for seed in results["seeds"]]
        there = [n for n in names if Path(n).name == n and (directory / n / "recipe.yaml").exists()]
        missing += [f"the directory of the run {name}: its curves are left out" for name in names if name not in there]
        runs[arm] = [_run(directory / name) for name in there]
    if not recipe.evaluation.along:
        missing.append("evaluations along the runs: curves have their ends alone; evaluation.points=4 makes more")
    return Study(recipe, results, runs, *_extras(directory), missing)


def _alone(directory: Path) -> Study:
    run = _run(directory)
    arms = {run.recipe.arm: over_seeds([run.result], modality_of(run.recipe).metrics)} if run.result else {}
    missing = [] if run.result else ["result.json: the run is not finished; `vpretrain run ... --resume` goes on"]
    missing.append("controls and the untouched learner: `vpretrain compare` runs them under the same budget")
    results = {"arms": arms, "seeds": [run.recipe.seed], "versions": run.provenance.get("versions", {})}
    return Study(run.recipe, results, {run.recipe.arm: [run]}, *_extras(directory), missing)


def _extras(directory: Path) -> tuple[Json, Json]:
    """Return the results of probe and profile."""
    return _json(directory / "probe.json", _PROBED), _json(directory / "profile.json", _PROFILED)


def _run(directory: Path) -> Run:
    return Run(
        directory,
        load_recipe(directory / "recipe.yaml"),
        _json(directory / "result.json", {"seconds"}),
        read_log(directory / "metrics.jsonl"),
        read_log(directory / "scores.jsonl"),
        _json(directory / "provenance.json", {"versions"}),
    )


def _json(file: Path, needed: set[str]) -> Json:
    """Return the content of a file; empty if there is no such file."""
    if not file.exists():
        return {}
    try:
        found = read_json(file)
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not needed <= found.keys():
        raise _damaged(file)
    return found


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged, or not what vpretrain writes: make it again, or take it away")


def read_log(file: Path) -> Lines:
    """Return the lines of a log of steps, without an incomplete last one: the run may be active. Raises UserError."""
    texts = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = dict(json.loads(text))
            lines.append(line | {"step": int(line["step"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(texts):
                raise UserError(f"{file} is damaged in line {number}: resume the run, or take the line away") from None
    return lines
