"""The parts of `make bench-gpu` that run in processes of their own: the tests, and the timed arms."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.given import Given
from benchmarks.gpu.processes import Clock, lines
from benchmarks.gpu.settings import CALIBRATING, SHARDED
from vpretrain.errors import UserError

_OUTCOME = re.compile(r"^(tests/\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR)\b")
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/\S+) - (.*)")  # of a test, or of a file that cannot be imported


def run_tests(section: dict[str, Any], clock: Clock, given: Given, write: Callable[[], None]) -> None:
    """Run tests/gpu; `outcomes` by test, and the first line of every failure."""
    outcomes, failures = section.setdefault("outcomes", {}), section.setdefault("failures", {})
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-o", "addopts=", "-p", "no:cacheprovider"]
    # Warnings of the GPU's libraries are no failures here; everywhere else they are.
    command += ["-W", "default", "--tb=short", "--continue-on-collection-errors"]
    command += ["--rehearse"] if given.rehearsed else []
    for line in lines(command, clock.left(), accept=(0, 1)):
        print(line)
        if found := _OUTCOME.match(line):
            outcomes[found[1]] = found[2].lower()
            write()
        elif found := _FAILURE.match(line):
            failures[found[1]] = found[2]
    failed = sum(outcome in ("failed", "error") for outcome in outcomes.values())
    files = sum("::" not in name for name in failures)
    if failed or files:
        unread = f", {files} of their files could not be imported" if files else ""
        raise UserError(f"{failed} of {len(outcomes)} tests failed{unread}; their messages stand above")


def run_speed(section: dict[str, Any], clock: Clock, given: Given, write: Callable[[], None]) -> None:
    """Time the arms of every learner."""
    _time(given.learners, section, clock, given, write)


def run_fsdp2(section: dict[str, Any], clock: Clock, given: Given, write: Callable[[], None]) -> None:
    """Time arms under FSDP2, in a group of one process."""
    _time({CALIBRATING: SHARDED}, section, clock, given, write, "--sharded")


def _time(
    arms: Mapping[str, Sequence[str]],
    section: dict[str, Any],
    clock: Clock,
    given: Given,
    write: Callable[[], None],
    *options: str,
) -> None:
    """Put figures into the section by learner, arm and tokens per step; a learner that fails leaves time to the next."""
    failed = []
    for learner, names in arms.items():
        command = [sys.executable, "-m", "benchmarks.gpu.worker", learner, *names, *options, "--learner", given.learner]
        command += ["--rehearse"] if given.rehearsed else []
        try:
            for line in lines(command, clock.left()):
                found = json.loads(line)
                arm, size = found.pop("arm"), found.pop("tokens_a_step")
                section.setdefault(learner, {}).setdefault(arm, {})[str(size)] = found
                write()
                print(f"{learner}, {arm}, {size:,} tokens per step: {_told(found)}")
        except UserError as error:
            failed.append(f"{learner}: {error}")
    if failed:
        raise UserError("; ".join(failed))


def _told(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return f"{found['per_second']:,.0f} tokens/s, {found['peak_bytes'] / 2**30:.1f} GiB"
