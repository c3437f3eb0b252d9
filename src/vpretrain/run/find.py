"""Find runs, and groups of runs such as comparisons, below a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpretrain.errors import UserError
from vpretrain.run.lock import LOCK

SUMMARIES = ("results.json", "pareto.json", "posttrain.json", "sweep.json")  # files that finished groups have
_LISTED = 8  # runs that a message names
_PARTS = {"checkpoints", "model", "replay", "tensorboard"}  # directories of a run that contain no runs


def members(directory: Path) -> list[str]:
    """Return the names of the runs in a group's directory; empty for a run's own directory."""
    if (directory / "metrics.jsonl").exists():
        return []
    return sorted({path.parent.name for name in ("recipe.yaml", LOCK) for path in directory.glob(f"*/{name}")})


def several(directory: Path, runs: Sequence[Path]) -> UserError:
    """Return the error of a directory that holds several runs where one is asked for."""
    names = [str(run) for run in runs]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return UserError(f"{directory} holds several runs: name one of them: {', '.join(names[:_LISTED])}{more}")


def runs_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each run and each group at or below a directory with the names of its members, a group before its members.

    Symbolic links are not followed. Raises UserError if there is no such directory.
    """
    if not root.is_dir():
        raise UserError(f"there is no directory {root}: name one that contains runs (recipes write to `output`)")
    for folder, inner, files in os.walk(root):
        # A recipe alone is no run: people keep their own recipe.yaml beside the data.
        found = bool({"metrics.jsonl", "result.json", LOCK, *SUMMARIES} & {*files})
        hidden: set[str] = _PARTS if found else set()  # elsewhere a run may have such a name
        inner[:] = sorted(name for name in inner if name not in hidden and not name.startswith("."))
        if found:
            yield Path(folder), members(Path(folder))
