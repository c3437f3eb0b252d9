"""`make bench-speed`: the cost of V-pretraining over ordinary pretraining, in time and in memory.

Writes results.json and results.md beside this file; --quick writes results-quick.json and .md below runs/ instead.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.command import command
from benchmarks.speed import settings
from benchmarks.speed.arm import HF
from benchmarks.speed.figures import figures
from benchmarks.speed.floor import flops
from benchmarks.speed.judgement import judgement
from benchmarks.speed.loss import SHAPES, compare_losses
from benchmarks.speed.meta import SHORT, Meta
from benchmarks.speed.table import markdown
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.method.value import ENGINES
from vpretrain.run.versions import versions

_HERE = Path(__file__).parent
REPEATS = 2  # of a meta update and of a loss
_PAPER = "v-paper"  # measured beside V if memory holds all arms
_WITH_META = ("v", _PAPER)


def main() -> None:
    """Measure everything in turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the packaged learner alone, one turn: under five minutes")
    quick = parser.parse_args().quick
    console = Console()
    report: dict[str, Any] = {
        "command": "make bench-speed" + (" ARGS=--quick" if quick else ""),
        "seed": 0,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    file = Path("runs/speed/results-quick.json") if quick else _HERE / "results.json"
    file.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    learners = {
        name: setting["together"] for name, setting in settings.LANGUAGE.items() if setting["together"] or not quick
    }
    report["language"] = {
        learner: throughput(
            learner,
            [HF, "one-hot", "v", *([_PAPER] if together else [])],
            3 if together and not quick else 2,
            together=together,
        )
        for learner, together in learners.items()
    }
    report["vision"] = throughput(
        "vision", ["fixed", "v", *([] if quick else [_PAPER])], 2 if quick else 5, together=True
    )
    write()  # so that measurements are not lost if the rest fails
    meta = Meta()
    report["flops"] = flops(meta.parts, meta.batch.rows(range(settings.ROWS)))
    report["meta"] = []
    timed = meta_settings(quick)
    with steady("meta update by engine", len(timed), "settings") as done:
        for number, setting in enumerate(timed, start=1):
            engines = list(ENGINES) if setting["align"] == "cosine" else SHORT
            report["meta"] += meta.rows(engines, REPEATS, **setting)
            done(number)
    report["judgement"] = judgement(REPEATS)
    report["loss"] = compare_losses(["49k"] if quick else list(SHAPES), REPEATS)
    report = headline(report) | report
    write()
    file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    console.print(markdown(report), highlight=False)
    console.print(f"results: {file}")


def throughput(learner: str, arms: Sequence[str], rounds: int, *, together: bool) -> dict[str, Any]:
    """Time steps of the arms, each in its own process.

    Args:
        learner: its name in the settings, or vision.
        arms: those with V have a meta update in their first timed round and in their last.
        rounds: number of timed rounds, of one step each.
        together: keep all processes and let them take turns, so that compared steps follow each other; else one arm after
            another, for learners of which memory holds only one.
    """
    period = settings.PERIOD if learner in settings.LANGUAGE else settings.VISION_PERIOD
    found: dict[str, dict[str, Any]] = {}
    # An arm's turns, as step numbers: multiples of the period have a meta update; the first turn is a warm-up, with the first
    # update that does anything, since AdamW has no metric before its first step.
    turns: dict[str, list[list[int]]] = {arm: [[1, *([period] if arm in _WITH_META else [])]] for arm in arms}
    for turn, (arm, own) in itertools.product(range(rounds), turns.items()):
        updates = arm in _WITH_META and turn in (0, rounds - 1)
        own.append([*([(turn + 2) * period] if updates else []), (turn + 2) * period + 1])
    seconds: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    with steady(f"{learner}, learner steps", sum(map(len, itertools.chain(*turns.values()))), "steps") as done:
        for group in [arms] if together else [[arm] for arm in arms]:
            workers = {arm: _Worker(learner, arm) for arm in group}
            for turn, (arm, worker) in itertools.product(range(rounds + 1), workers.items()):
                for number in turns[arm][turn]:
                    seconds[arm][number] = worker.step(number)
                    done(sum(map(len, seconds.values())))
            for arm, worker in workers.items():
                timed = {number: each for number, each in seconds[arm].items() if number > period}
                plain = [each for number, each in timed.items() if number % period]
                meta = [each for number, each in timed.items() if number % period == 0]
                found[arm] = figures(plain, meta, period, worker.end())
    return found


class _Worker:
    """A process of `benchmarks.speed.worker`, and the pipes to it."""

    def __init__(self, learner: str, arm: str) -> None:
        self.name = f"{learner}, {arm}"
        command = [sys.executable, "-m", "benchmarks.speed.worker", learner, arm]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self, number: int) -> float:
        """Let the process make a step; return its seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(number, file=self.process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> dict[str, Any]:
        """End the process; return its measurements."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        told: dict[str, Any] = json.loads(self._answer())
        self.process.wait()
        return told

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise UserError(f"{self.name}: the process failed; its message stands above")
        return answer


def meta_settings(quick: bool) -> list[dict[str, Any]]:
    """Return the settings of the timed meta updates: the default, and one thing changed at a time."""
    default = {"layers": 2, "k": 64, "tokens": settings.META_ROWS * settings.META_LENGTH, "align": "cosine"}
    others = [{"align": "dot"}] + ([] if quick else [{"layers": n} for n in (1, 4)])
    others += [] if quick else [{"k": k} for k in (8, 256)] + [{"tokens": n} for n in (256, 1024)]
    return [default] + [default | other for other in others]


def headline(report: dict[str, Any]) -> dict[str, float]:
    """Return the figures to which the aims refer."""
    arms = report["language"]["smollm2-135m"]
    peaks = report["judgement"]["peak_bytes"]
    default = {row["engine"]: row["seconds"] for row in report["meta"][: len(ENGINES)]}
    ratios = {
        "tokens_per_s_ratio_v_over_one_hot": arms["v"]["per_second"] / arms["one-hot"]["per_second"],
        "tokens_per_s_ratio_v_over_one_hot_within_v": 1 / (1 + arms["v"]["added_over_ordinary"]),
        "tangent_over_one_hot_step": arms["v"]["microseconds"]["tangent"] * arms["one-hot"]["per_second"] / 1e6,
        "judgement_over_long_run": report["judgement"]["share"],
        "peak_bytes_ratio_judgement_over_one_hot": peaks["judgement"] / peaks["one-hot"],
        "tokens_per_s_ratio_v_paper_over_one_hot_within_v_paper": 1 / (1 + arms[_PAPER]["added_over_ordinary"]),
        "tokens_per_s_ratio_v_over_hf": arms["v"]["per_second"] / arms[HF]["per_second"],
        "peak_memory_ratio_v_over_hf": arms["v"]["peak_bytes"] / arms[HF]["peak_bytes"],
        "meta_seconds_double_backward_over_jvp": default["double_backward"] / default["jvp"],
        "tokens_per_s_ratio_v_paper_at_the_flop_floor": _floor_ratio(report["flops"]),
        "meta_flops_over_floor": report["flops"]["meta"] / report["flops"]["meta_floor"],
        "vision_images_per_s_ratio": report["vision"]["v"]["per_second"] / report["vision"]["fixed"]["per_second"],
        "vision_images_per_s_ratio_within_v": 1 / (1 + report["vision"]["v"]["added_over_ordinary"]),
    }
    if "qwen2.5-0.5b" in report["language"]:
        arms = report["language"]["qwen2.5-0.5b"]
        ratios["tokens_per_s_ratio_v_over_one_hot_0.5b"] = arms["v"]["per_second"] / arms["one-hot"]["per_second"]
        ratios["tokens_per_s_ratio_v_over_one_hot_within_v_0.5b"] = 1 / (1 + arms["v"]["added_over_ordinary"])
        ratios["peak_memory_ratio_v_over_hf_0.5b"] = arms["v"]["peak_bytes"] / arms[HF]["peak_bytes"]
    return ratios


def _floor_ratio(flops: dict[str, float]) -> float:
    """v-paper over one-hot if designer and meta update were at their floors, at the learner's own FLOPs per second."""
    micro_batches = settings.LANGUAGE["smollm2-135m"]["accumulation"]
    added = flops["designer_floor"] + flops["meta_floor"] / settings.PERIOD / micro_batches
    return 1 / (1 + added / flops["step"])


if __name__ == "__main__":
    command(main)
