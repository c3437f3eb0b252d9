"""Rows and images that a stream cannot read: skipped up to a share, and named in a file beside the run.

A checkpoint holds them in the stream's cursor, so that counts and names are the same in every process and after a resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vpretrain.config import StreamConfig
from vpretrain.errors import Unreadable, UserError
from vpretrain.files import read_lines, write_whole
from vpretrain.types import Json

SKIPPED = "skipped.jsonl"
UNREADABLE = "unreadable"  # the reason by which they are counted among the examples left out
FEWEST = 1000  # the share is one of at least this number: a few early faults say nothing about the rest
NAMED = 1000  # faults per source and shard that are named; all are counted
_LONGEST = 300  # characters of a reason


class TooManySkipped(UserError):
    """More than `stream.max_skipped` of a source cannot be read; `entries` has the named ones."""

    entries: Sequence[Json] = ()


class Skipped:
    """The rows or images that were skipped in one source, or in one shard of it, in its first epoch: later ones skip the same.

    Args:
        origin: the source's name in messages.
        config: the stream's.

    Attributes:
        read: rows or images met so far, readable or not.
        count: how many of them were skipped.
        named: place and reason of the first ones.
    """

    def __init__(self, origin: str, config: StreamConfig) -> None:
        self.origin, self.config = origin, config
        self.read = self.count = 0
        self.named: list[tuple[str, str]] = []

    def met(self, error: Unreadable | None, *, again: bool) -> None:
        """Count a row or image.

        Args:
            error: why it cannot be read and is skipped; None if it can.
            again: whether it comes after the first epoch.

        Raises:
            Unreadable: the error, under `stream.on_error=stop`.
            TooManySkipped: it is one too many.
        """
        if error is not None and self.config.on_error == "stop":
            raise error
        if again:
            return
        self.read += 1
        if error is None:
            return
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append((error.place, error.reason[:_LONGEST]))
        if self.count > self.config.max_skipped * max(self.read, FEWEST):
            stop = TooManySkipped(
                f"{self.origin}: {self.count:,} of {self.read:,} rows or images cannot be read, the last: {error.place} "
                f"{error.reason}; mend them, or raise stream.max_skipped={self.config.max_skipped:g}"
            )
            stop.entries = _entries(self.origin, self.named)
            raise stop

    def state_dict(self) -> Json:
        """The counts and names, JSON-ready."""
        return {"read": self.read, "count": self.count, "named": [list(one) for one in self.named]}

    def load_state_dict(self, state: Json) -> None:
        """Continue from them."""
        self.read, self.count = state["read"], state["count"]
        self.named = [(place, reason) for place, reason in state["named"]]


def entries(origins: Sequence[str], shards: Mapping[str, Sequence[Json]]) -> list[Json]:
    """List what was skipped, by source and shard.

    Args:
        origins: of the sources.
        shards: of a stream's cursor: in each shard one state per source, with that of its `Skipped` as `skipped`.
    """
    return [
        entry
        for number, origin in enumerate(origins)
        for shard in sorted(shards, key=int)
        for entry in _entries(origin, shards[shard][number]["skipped"]["named"])
    ]


def _entries(origin: str, named: Sequence[Sequence[str]]) -> list[Json]:
    return [{"source": origin, "place": place, "reason": reason} for place, reason in named]


def write(directory: Path, found: Sequence[Json]) -> None:
    """Write the file of a run's directory; without anything skipped there is none."""
    file = directory / SKIPPED
    if found:
        write_whole(file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in found))
    else:
        file.unlink(missing_ok=True)


def extend(directory: Path, found: Sequence[Json]) -> None:
    """Add what the file does not name yet."""
    known = read_lines(directory / SKIPPED)
    write(directory, [*known, *(entry for entry in found if entry not in known)])
