"""A benchmark in several sittings, on several machines: the results of its finished runs are kept in one file."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparison import begun
from vpretrain.compare.compare import compare
from vpretrain.compare.outcome import ComparisonResult
from vpretrain.compare.runs import Process, start_process
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_json, read_lines, write_json, write_whole
from vpretrain.recipe import flat, parse_recipe, save_recipe

_MAY_CHANGE = {"arm", "checkpoint", "output", "threads", "tracking"}  # from one sitting to the next


class Sittings:
    """Comparisons whose runs take turns, in two rounds: a machine may lose a third of its speed from one run to the next.

    Args:
        file: the recorded results, one line per group and one per finished run; None: nothing is recorded.
        add: go on from the recorded results.

    Raises:
        UserError: there is nothing to add to.
    """

    def __init__(self, file: Path | None, *, add: bool) -> None:
        if add and file is None:
            raise UserError("--add is for the benchmark itself: only its runs are recorded")
        self.file, self.add = file, add

    @classmethod
    def of(cls, options: argparse.Namespace, file: Path, minutes: float) -> Sittings:
        """Return the sittings that these options ask for; runs are recorded in `file` if they are the benchmark's own.

        Those take `minutes`, without changed settings.
        """
        changed = options.quick or options.settings or options.validation or options.minutes != minutes
        return cls(None if changed else file, add=options.add)

    def compare(
        self, recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], run: Callable[..., ComparisonResult] = compare
    ) -> dict[str, Any]:
        """Compare arms and seeds, a few seeds at a time, because a run that waits for its turn holds a checkpoint.

        Args:
            recipe, arms, seeds: as in `vpretrain.compare`.
            run: what is called in its place by a test.

        Raises:
            UserError: there are recorded results of another recipe, or results that would be lost, or as `vpretrain.compare`
                raises it.
        """
        group = recipe.directory
        if self.file is not None:
            self._restore(self.file, recipe)
        results: dict[str, Any] = {}
        for count in range(min(2, len(seeds)), len(seeds) + 1):
            start = partial(_start_lean, group)
            results = run(recipe, arms, seeds=seeds[:count], rounds=2, resume=begun(recipe), start=start).figures
            if self.file is not None:
                self._record(self.file, recipe)
        return results

    def _record(self, file: Path, recipe: Recipe) -> None:
        """Put a group's finished runs in the place of those that were recorded."""
        name = recipe.directory.name
        lines: list[dict[str, Any]] = [{"group": name, "recipe": _settings(recipe)}]
        for result in sorted(recipe.directory.glob("*/result.json")):
            found = read_json(result)
            scores = read_lines(result.parent / "scores.jsonl")
            lines.append({"group": name, "run": result.parent.name, "result": found, "scores": scores})
        others = [line for line in read_lines(file) if line["group"] != name]
        write_whole(file, "".join(json.dumps(line) + "\n" for line in (*others, *lines)))

    def _restore(self, file: Path, recipe: Recipe) -> None:
        """Write the recorded results of a group where its runs would have written them."""
        group = recipe.directory
        for line in read_lines(file):
            if line["group"] != group.name:
                continue
            if "recipe" in line:
                # Parsed, so that a setting that is new since then has its default.
                recorded, ours = (flat(_settings(one)) for one in (parse_recipe(line["recipe"]), recipe))
                changed = [key for key in ours.keys() | recorded.keys() if recorded.get(key) != ours.get(key)]
                if changed and self.add:
                    raise UserError(f"{file} was recorded with other settings of {group.name}: {', '.join(changed)}")
                continue
            result = group / line["run"] / "result.json"
            if result.exists():
                continue
            if not self.add:
                raise UserError(
                    f"{file} holds finished runs: go on from them with ARGS=--add, or delete it to begin anew"
                )
            result.parent.mkdir(parents=True, exist_ok=True)
            if not begun(recipe):
                save_recipe(recipe, group / "recipe.yaml")
            write_json(result, line["result"])
            scores = "".join(json.dumps(score) + "\n" for score in line["scores"])
            (result.parent / "scores.jsonl").write_text(scores, encoding="utf-8")


def _settings(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude=_MAY_CHANGE)


def _start_lean(group: Path, command: Sequence[str]) -> Process:
    """Start a run, and delete the models and checkpoints of finished runs, which are large and many."""
    for result in group.glob("*/result.json"):
        for part in ("model", "checkpoints"):
            shutil.rmtree(result.parent / part, ignore_errors=True)
    return start_process(command)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option by which a benchmark goes on from recorded results."""
    parser.add_argument(
        "--add", action="store_true", help="keep the runs of runs.jsonl, and make those that are missing"
    )
