"""Time the arms of one learner: `python -m benchmarks.gpu.worker LEARNER ARM ...` prints a line of JSON per arm and size.

Batches are drawn before the clock starts, and their time is given separately: one process cannot make them as fast as a GPU
reads them. Steps are timed without a wait between their phases; the phases are those of one more period.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.settings import ON_GPU, REHEARSED, Sizes
from benchmarks.speed.arm import HF, TimedArm
from benchmarks.speed.figures import figures
from benchmarks.speed.floor import floors
from benchmarks.speed.settings import PACKAGED, language_recipe
from vpretrain.devices import available
from vpretrain.language.assemble import assemble
from vpretrain.method.parameters import ShardedTheta
from vpretrain.run.finish import peak_memory_bytes
from vpretrain.timing import now, watching


class Drawn:
    """A stream of micro-batches that were drawn before, over and over, `count` per step."""

    def __init__(self, batches: Sequence[Any], count: int) -> None:
        self._turns, self.count = itertools.cycle(batches), count

    def next(self) -> list[Any]:
        """Return the micro-batches of one learner step."""
        return list(itertools.islice(self._turns, self.count))


def measured(
    learner: str, name: str, sizes: Sizes, *, sharded: bool, named: str = PACKAGED
) -> Iterator[dict[str, Any]]:
    """Yield the figures of an arm for each size of step, or the error of one that does not fit into memory.

    Args:
        learner: whose shape is timed.
        name: of the arm.
        sizes: of the steps.
        sharded: whether FSDP2 holds the learner over the processes, of which there is one.
        named: what the recipe names as its learner: it has the tokenizer, and SmolLM2-135M's weights if these are timed.
    """
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"rows": sizes.rows, "length": sizes.length, "precision": "bf16", "name": named}
    kwargs["accumulation"] = max(sizes.micro_batches)
    recipe: Any = language_recipe(learner, "one-hot" if name == HF else name, **kwargs)
    parts: Any = assemble(recipe, sizes.model(learner, str(available(recipe.learner.device))))
    start = now()
    batches = parts.stream.next()
    drawing = now() - start
    about = {
        "arm": name,
        "stream_microseconds": 1e6 * drawing / sum(batch.units for batch in batches),
        "flops_a_micro_batch": floors(parts, batches[0], attention=True),
    }
    if sharded:
        parts.learner.theta = ShardedTheta(parts.learner.module)
    arm = TimedArm(recipe, parts, plain=name == HF)
    for count in sizes.micro_batches[:1] if sharded else sizes.micro_batches:
        parts.stream = Drawn(batches, count)
        size = {"micro_batches": count, "tokens_a_step": sum(batch.units for batch in batches[:count])}
        try:
            yield about | size | _timed(arm, sizes.periods)
        except torch.OutOfMemoryError as error:
            yield about | size | {"error": str(error).split(".")[0]}
            return


def _timed(arm: TimedArm, periods: int) -> dict[str, Any]:
    period = arm.recipe.value.every_steps
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2):  # a warm-up with a meta update, and one without
        arm.step(number)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for number in range(period, (1 + periods) * period):
        start = now()
        arm.step(number)
        seconds[arm.updates(number)].append(now() - start)
    peak = peak_memory_bytes()
    watched = range((1 + periods) * period, (2 + periods) * period)
    with watching() as watch:
        for number in watched:
            arm.step(number)
    return figures(seconds[False], seconds[True], period, arm.measured(watch.seconds, watched, peak))


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Be the only process of a group, as FSDP2 needs one."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Measure the arms that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("learner")
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--sharded", action="store_true", help="by FSDP2, and the smallest step only")
    parser.add_argument("--rehearse", action="store_true", help="a tiny learner and tiny steps")
    parser.add_argument("--learner", dest="named", default=PACKAGED, help="what the recipe names as its learner")
    options = parser.parse_args()
    sizes, answers = REHEARSED if options.rehearse else ON_GPU, sys.stdout
    with contextlib.redirect_stdout(sys.stderr), one_process() if options.sharded else contextlib.nullcontext():
        for name in options.arms:
            for found in measured(options.learner, name, sizes, sharded=options.sharded, named=options.named):
                print(json.dumps(found), file=answers, flush=True)
            gc.collect()  # the arm before, which has references in a circle
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
