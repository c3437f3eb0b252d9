"""The results of a benchmark's finished runs in one file, so that it can be run in several sittings, on several machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vpretrain.errors import UserError
from vpretrain.files import read_lines


def record(groups: Iterable[Path], file: Path) -> None:
    """Write a file with one line per finished run of some groups, directories that each hold a recipe and its runs."""
    lines = []
    for group in groups:
        recipe = _hash(group)
        for result in sorted(group.glob("*/result.json")):
            found = json.loads(result.read_text(encoding="utf-8"))
            lines.append({"group": group.name, "run": result.parent.name, "recipe": recipe, "result": found})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def restore(file: Path, group: Path) -> None:
    """Write the recorded results of a group where its runs would have written them. Raises UserError if its recipe differs."""
    for line in read_lines(file):
        if line["group"] != group.name:
            continue
        if line["recipe"] != _hash(group):
            raise UserError(f"{file} was recorded with another recipe of {group.name}: begin anew")
        result = group / line["run"] / "result.json"
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps(line["result"], indent=1), encoding="utf-8")


def _hash(group: Path) -> str:
    return hashlib.sha256((group / "recipe.yaml").read_bytes()).hexdigest()[:16]
