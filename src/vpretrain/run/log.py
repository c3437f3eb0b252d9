"""The logs of a run: JSON lines, each with its step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from vpretrain import distributed
from vpretrain.files import write_whole
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.types import Json

METRICS, SCORES, VIEWS = LOGS = ("metrics.jsonl", "scores.jsonl", "views.jsonl")


def append(log: Path, line: Json, find: Callable[[], Json]) -> Json:
    """Append a line with the result of `find`, on which no later step depends; return the result."""
    random = random_state()
    found = find()
    if distributed.is_rank_0():
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | found) + "\n")
    set_random_state(random)
    return found


def cut(log: Path, step: int) -> None:
    """Remove lines of steps after the checkpoint, which are written again, and an incomplete line."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    write_whole(log, "".join(line + "\n" for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
