"""A benchmark in several sittings, on several machines: the results of its finished runs are kept in one file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vpretrain.compare.compare import compare
from vpretrain.compare.runs import Process, start_process
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.recipe import save_recipe


class Sittings:
    """Comparisons whose runs take turns, in two rounds: a machine may lose a third of its speed from one run to the next.

    Args:
        file: the recorded results, one line per finished run; None: nothing is recorded.
        add: go on from the recorded results.
    """

    def __init__(self, file: Path | None, *, add: bool) -> None:
        self.file, self.add = file, add
        self._groups: list[Path] = []

    def compare(self, recipe: Recipe, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """Compare arms and seeds, a few seeds at a time, because a run that waits for its turn holds a checkpoint.

        Raises:
            UserError: there are recorded results of another recipe, or as `vpretrain.compare` raises it.
        """
        group = recipe.directory
        self._groups.append(group)
        if self.add and self.file is not None:
            group.mkdir(parents=True, exist_ok=True)
            if not (group / "recipe.yaml").exists():
                save_recipe(recipe, group / "recipe.yaml")
            restore(self.file, group)
        results: dict[str, Any] = {}
        for count in range(min(2, len(seeds)), len(seeds) + 1):
            resume = (group / "recipe.yaml").exists()
            start = partial(_start_lean, group)
            results = compare(recipe, arms, seeds=seeds[:count], rounds=2, resume=resume, start=start)
            if self.file is not None:
                record(self._groups, self.file)
        return results


def record(groups: Sequence[Path], file: Path) -> None:
    """Write a file with one line per finished run of some groups, directories that each hold a recipe and its runs."""
    lines = []
    for group in groups:
        recipe = _hash(group)
        for result in sorted(group.glob("*/result.json")):
            found = json.loads(result.read_text(encoding="utf-8"))
            line = {"group": group.name, "run": result.parent.name, "recipe": recipe, "result": found}
            lines.append(line | {"scores": read_lines(result.parent / "scores.jsonl")})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def restore(file: Path, group: Path) -> None:
    """Write the recorded results of a group where its runs would have written them. Raises UserError if its recipe differs."""
    for line in read_lines(file):
        if line["group"] != group.name:
            continue
        if line["recipe"] != _hash(group):
            raise UserError(f"{file} was recorded with another recipe of {group.name}: begin anew")
        run = group / line["run"]
        run.mkdir(exist_ok=True)
        (run / "result.json").write_text(json.dumps(line["result"], indent=1), encoding="utf-8")
        scores = "".join(json.dumps(score) + "\n" for score in line["scores"])
        (run / "scores.jsonl").write_text(scores, encoding="utf-8")


def _start_lean(group: Path, command: Sequence[str]) -> Process:
    """Start a run, and delete the models and checkpoints of finished runs, which are large and many."""
    for result in group.glob("*/result.json"):
        for part in ("model", "checkpoints"):
            shutil.rmtree(result.parent / part, ignore_errors=True)
    return start_process(command)


def _hash(group: Path) -> str:
    return hashlib.sha256((group / "recipe.yaml").read_bytes()).hexdigest()[:16]
