"""Free the disk of old checkpoints: of those that neither a resume nor an export needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpretrain.console import steady, warn
from vpretrain.errors import UserError
from vpretrain.files import remove, size_of
from vpretrain.run.checkpoint import checkpoints, damage
from vpretrain.run.find import runs_below
from vpretrain.run.lock import holder, locked


@dataclass(frozen=True)
class Removable:
    """The files of a run that can be removed.

    Attributes:
        run: its directory.
        paths: checkpoints, and what killed processes left half written.
        size: of these, in bytes.
        found: all its checkpoints.
    """

    run: Path
    paths: Sequence[Path]
    size: int
    found: Sequence[Path]


def removable(root: Path, *, finished: bool = False) -> list[Removable]:
    """Return what can be removed of the runs at or below a directory; those in use are left out, with a warning.

    Of each run the newest intact checkpoint stays: a resume, `report` and `gate` read it, and `export` does if there is no
    model yet. Without an intact one all stay.

    Args:
        root: the directory.
        finished: include the newest checkpoint of runs that are finished and have their model, which `export` then copies. They
            can no longer be resumed with a larger budget, `report` and `gate` cannot show their targets, and no designer can
            start from theirs.

    Raises:
        UserError: there is no such directory.
    """
    runs = [directory for directory, members in runs_below(root) if not members]
    found = []
    with steady("       checkpoints", len(runs), "runs") as done:
        for number, run in enumerate(runs, start=1):
            if any(holder(directory) is not None for directory in (run, run.parent)):
                warn(f"warning: {run} is in use: nothing of it is removed")
            elif paths := _removable_of(run, finished=finished):
                found.append(Removable(run, paths, sum(map(size_of, paths)), checkpoints(run / "checkpoints")))
            done(number)
    return found


def clean(listed: Sequence[Removable]) -> int:
    """Remove what `removable` has listed, except of runs that have gone on since; return the bytes that were freed."""
    freed = 0
    for one in listed:
        try:
            with locked(one.run):
                if checkpoints(one.run / "checkpoints") != one.found:
                    warn(f"warning: {one.run} has gone on since: nothing of it is removed")
                    continue
                for path in one.paths:
                    remove(path)
                freed += one.size
        except UserError as error:
            warn(f"warning: {error}")
    return freed


def _removable_of(run: Path, *, finished: bool) -> list[Path]:
    root = run / "checkpoints"
    found = checkpoints(root)
    newest = next((path for path in reversed(found) if damage(path) is None), None)
    needless = [path for path in found if newest is not None and path != newest]
    if finished and newest is not None and (run / "result.json").exists() and (run / "model").is_dir():
        needless.append(newest)
    left = [path for pattern in (".writing-*", ".*.old") for path in root.glob(pattern)]
    left += [path for pattern in (".*.writing", ".*.old") for path in run.glob(pattern) if path.is_dir()]
    return needless + left
