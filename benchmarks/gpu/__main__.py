"""`make bench-gpu`, or `python -m benchmarks.gpu` where nothing can be installed: what only a GPU can show, in nine minutes on
one device; without CUDA it prints one line.

Writes benchmarks/gpu.json, after each measurement, so that a stop loses none. --cpu rehearses all of it on the CPU, with tiny
sizes and without a result: its figures go nowhere unless --output names a file. What to take along to a machine without a
package index is in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import command
from benchmarks.gpu.given import GSM8K, Given, given, missing
from benchmarks.gpu.parts import run_fsdp2, run_speed, run_tests
from benchmarks.gpu.processes import Clock, Unfinished
from benchmarks.gpu.shift import run_shift
from benchmarks.gpu.table import markdown
from vpretrain.errors import UserError
from vpretrain.files import write_whole
from vpretrain.run.versions import versions

MINUTES = 9.0
_END_S = 10.0  # for the last part to be stopped, and the tables
_FILE = Path(__file__).parents[1] / "gpu.json"


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: of its section in the results.
        limit_s: seconds that it gets at most; None: all that are left.
        does: said before the start.
        run: fills its section, and writes the results after each measurement.
        needs: modules without which it is left out.
        lacks: says why it is left out; empty if it is not.
    """

    name: str
    limit_s: float | None
    does: str
    run: Callable[[dict[str, Any], Clock, Given, Callable[[], None]], None]
    needs: tuple[str, ...] = ()
    lacks: Callable[[Given], str] = lambda given: ""

    def left_out(self, given: Given) -> str:
        """Return why the part is left out; empty if it is not."""
        absent = missing(self.needs)
        return f"{', '.join(absent)} not installed" if absent else self.lacks(given)


def _shift_lacks(given: Given) -> str:
    if not given.weights:
        return "no weights of SmolLM2-135M"
    if not given.rehearsed and not given.gsm8k.exists():
        return "no GSM8K: fetch it as docs/comparison.md says, or give --gsm8k FILE"
    return ""


_TEXT = ("reasoning_gym",)
PARTS = (
    Part(
        "tests",
        110,
        "tests/gpu: prefetch through pinned memory, sparse products, replay, waits for the device, bf16, flash attention "
        "beside MATH, compile, shards",
        run_tests,
        ("pytest", "beartype"),
    ),
    Part(
        "speed",
        190,
        "tokens/s and memory of one-hot, v and plain transformers in bf16, at 16k and 64k tokens per step: the shape of "
        "Qwen2.5-0.5B (there v-paper too), then SmolLM2-135M",
        run_speed,
        _TEXT,
    ),
    Part("fsdp2", 60, "one-hot and v under FSDP2 on this one device, at 16k tokens per step", run_fsdp2, _TEXT),
    Part("shift", None, "bench-shift's arms in bf16, one seed, one arm after another", run_shift, (), _shift_lacks),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts in turn."""
    options = _parser().parse_args(arguments)
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for all processes
    elif not torch.cuda.is_available():
        print("bench-gpu: skipped, as there is no CUDA device; ARGS=--cpu rehearses it on the CPU")
        return
    clock = Clock(60 * MINUTES - _END_S)  # runs while weights are converted or a tokenizer is trained, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes of a part end with it
    file = options.output if options.cpu else options.output or _FILE
    try:
        with tempfile.TemporaryDirectory() as aside:
            found = given(options.learner, options.gsm8k, Path(aside), rehearsed=options.cpu)
            report = measure(PARTS, found, clock, file=file)
    except KeyboardInterrupt:
        print(f"bench-gpu: stopped; what was measured is in {file}" if file else "bench-gpu: stopped")
        raise SystemExit(130) from None
    print(markdown(report))
    print(f"results: {file}" if file else "results: none, as this was a rehearsal (--output FILE keeps its figures)")
    failed = [name for name, part in report["parts"].items() if part["outcome"].startswith("failed")]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; see above")


def measure(parts: Sequence[Part], given: Given, clock: Clock, *, file: Path | None) -> dict[str, Any]:
    """Say what will be done, and do it; return the results.

    Args:
        parts: in their order; one that fails or is stopped leaves its time to the others.
        given: what there is to measure with.
        clock: of all parts together.
        file: where the results are written after each measurement; None: nowhere.
    """
    report: dict[str, Any] = {
        "command": "make bench-gpu" + (" ARGS=--cpu" if given.rehearsed else ""),
        "rehearsed": given.rehearsed,
        "without": given.remark,
        "device": _device(given.rehearsed),
        "versions": versions(),
        "seed": 0,
        "parts": {},
    }

    def write() -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(report, indent=1) + "\n")

    tiny = ", tiny sizes" * given.rehearsed
    print(f"{report['command']} on {report['device']['name']}, at most {MINUTES:g} minutes{tiny}")
    if given.remark:
        print(given.remark)
    reasons = {part.name: part.left_out(given) for part in parts}
    for part in parts:
        limit = "what is left" if part.limit_s is None else f"at most {part.limit_s:.0f} s"
        reason = reasons[part.name]
        print(f"  {part.name}: left out, {reason}" if reason else f"  {part.name} ({limit}): {part.does}")
    for part in parts:
        if reasons[part.name]:
            report["parts"][part.name] = {"outcome": f"left out: {reasons[part.name]}", "seconds": 0.0}
            continue
        start, limit_s = time.monotonic(), min(clock.left(), part.limit_s or clock.left())
        print(f"{part.name}:", flush=True)
        outcome = "finished"
        try:
            part.run(report.setdefault(part.name, {}), Clock(limit_s), given, write)
        except Unfinished as reason:
            outcome = str(reason)
        except UserError as error:
            outcome = f"failed: {error}"
        report["parts"][part.name] = {"outcome": outcome, "seconds": time.monotonic() - start}
        print(f"{part.name}: {outcome}", flush=True)
        write()
    return report


def _device(rehearsed: bool) -> dict[str, Any]:
    if rehearsed:
        return {"name": "the CPU"}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory_gib": found.total_memory / 2**30,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-gpu ARGS=...", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with tiny sizes, in a few minutes")
    parser.add_argument(
        "--learner",
        type=Path,
        metavar="PATH",
        help="a directory with SmolLM2-135M, or with a tokenizer alone (default: the packaged learner, if it is installed)",
    )
    parser.add_argument(
        "--gsm8k", type=Path, metavar="FILE", default=GSM8K, help="GSM8K's train.jsonl (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the results go (default: benchmarks/gpu.json)"
    )
    return parser


if __name__ == "__main__":
    command(main)
