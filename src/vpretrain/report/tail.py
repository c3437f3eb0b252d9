"""Read files of a run that another process is writing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vpretrain.types import Json


class Tail:
    """The new lines of a growing log: each is read once, unless the log has been cut or replaced.

    Lines that are not JSON objects are skipped, and an incomplete line is read once it is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> tuple[bool, list[Json]]:
        """Return whether the log has restarted, and the lines added since the last call, or since the restart."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())  # of what was opened: the path may lead to another file by now
                which = (found.st_dev, found.st_ino)
                anew = which != self._file or found.st_size < self._offset
                self._file, self._offset = which, 0 if anew else self._offset
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")
                text = whole[0] + whole[1]
        except OSError:
            anew, self._file, self._offset = self._file is not None, None, 0
            return anew, []
        self._offset += len(text)
        return anew, list(_objects(text))


def read_object(file: Path) -> Json | None:
    """Return the JSON object in a file that is written whole; None if there is no such file, or no object in it."""
    try:
        return next(_objects(file.read_bytes().replace(b"\n", b" ")), None)
    except OSError:
        return None


def _objects(text: bytes) -> Iterator[Json]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(line), dict):
                yield found
