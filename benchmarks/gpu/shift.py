"""bench-shift's arms one after another, one seed, for as long as time is left."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.given import Given
from benchmarks.gpu.processes import Clock, Unfinished
from benchmarks.gpu.settings import REHEARSED
from benchmarks.shift import __main__ as shift
from benchmarks.shift.data import write as write_roles
from benchmarks.steering.__main__ import summary
from vpretrain.compare.compare import compare
from vpretrain.compare.runs import Process, start_process
from vpretrain.errors import Interrupted, UserError
from vpretrain.language.model.load import load_tokenizer

MINUTES = 0.4  # of training per run
_FEWEST = 2  # arms of the first comparison: one-hot and v
_RUN_S = 45.0  # what a run is expected to take, before one was made
_PAIRS = shift.SIZES[-1]
_GRACE_S = 8.0  # for a run to end after SIGTERM


def run_shift(section: dict[str, Any], clock: Clock, given: Given, write: Callable[[], None]) -> None:
    """Compare arms, first one-hot and v, then one more at a time; the summary of all so far is in the section."""
    with tempfile.TemporaryDirectory() as root:
        arms = shift.ARMS[: _FEWEST if given.rehearsed else None]
        settings = (_tiny if given.rehearsed else _real)(Path(root), given)
        words = [f"--minutes={MINUTES}", "name=gpu", f"output={root}/runs", *settings]
        recipe = shift.recipe_of(_PAIRS, shift.parser().parse_args(words))
        section["minutes_a_run"] = MINUTES
        expected = _RUN_S
        for count in range(_FEWEST, len(arms) + 1):
            runs = 1 + count if count == _FEWEST else 1  # with the untouched learner
            if not given.rehearsed and clock.left() < runs * expected:
                raise Unfinished(f"{section.get('runs', 0)} runs made: no time is left for {arms[count - 1]}")
            start = time.monotonic()
            try:
                results = compare(recipe, arms[:count], seeds=[0], resume=count > _FEWEST, start=_until(clock))
            except (Interrupted, UserError) as error:
                killed = clock.left() == 0  # it did not end in time
                if isinstance(error, UserError) and not killed:
                    raise
                raise Unfinished(f"{section.get('runs', 0)} runs made: stopped during the next") from None
            expected = (time.monotonic() - start) / runs
            section |= summary(recipe, results.figures) | {"runs": 1 + count}
            write()
            print(f"bench-shift's {', '.join(arms[:count])}: {expected:.0f} s per run")


def _until(clock: Clock) -> Callable[[Sequence[str]], Process]:
    """Return a starter of runs that are stopped when the time ends."""

    def start(command: Sequence[str]) -> Process:
        process = start_process(command)
        for number, early in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 0.0)):
            timer = threading.Timer(max(0.0, clock.left() - early), process.send_signal, (number,))
            timer.daemon = True
            timer.start()
        return process

    return start


def _real(root: Path, given: Given) -> list[str]:
    """Write GSM8K's problems by role; return the settings of a run on them."""
    write_roles(given.gsm8k, root / "roles")
    return [f"learner.name={given.learner}", "learner.precision=bf16", *_places(root)]


def _tiny(root: Path, given: Given) -> list[str]:
    """Write a tiny learner and problems in GSM8K's form; return the settings of a run on them that takes seconds."""
    load_tokenizer(given.learner).save_pretrained(root / "learner")
    REHEARSED.model("", "cpu").save_pretrained(root / "learner")
    rows = [
        {
            "question": f"Ada has {a} pens and buys {b}. How many now?",
            "answer": f"She has {a} + {b} = {a + b}.\n#### {a + b}",
        }
        for a in range(10, 30)
        for b in range(2, 9)
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_roles(root / "train.jsonl", root / "roles")
    return [
        f"learner.name={root / 'learner'}",
        *_places(root),
        "budget.minutes=null",
        "budget.steps=4",
        "evaluation.problems=4",
        "evaluation.retention_tokens=128",
    ]


def _places(root: Path) -> list[str]:
    """The settings that name the files of problems by role."""
    places = {"stream": "stream", "feedback": "feedback", "evaluation": "test"}
    return [f"{section}.sources.0.path={root / 'roles' / role}.jsonl" for section, role in places.items()]
