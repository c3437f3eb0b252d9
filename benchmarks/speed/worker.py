"""Run one arm in its own process: `python -m benchmarks.speed.worker LEARNER ARM` makes a step for every number it is given.

Reads step numbers, one per line; answers each with JSON: the step's seconds. At the end of the input: what `figures` needs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch

from benchmarks.speed.arm import HF, TimedArm
from benchmarks.speed.settings import LANGUAGE, language_model, language_recipe, vision_recipe
from vpretrain.modality import modality_of
from vpretrain.run.finish import peak_memory_bytes
from vpretrain.timing import watching


def arm_of(learner: str, arm: str) -> TimedArm:
    """Return an arm on a learner, both named as in the settings."""
    torch.manual_seed(0)
    own = "one-hot" if arm == HF else arm
    recipe: Any = language_recipe(learner, own) if learner in LANGUAGE else vision_recipe(own)
    model = language_model(learner) if learner in LANGUAGE else None
    return TimedArm(recipe, modality_of(recipe).assemble(recipe, model), plain=arm == HF)


def main() -> None:
    """Make the steps that are asked for on stdin."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        arm = arm_of(*sys.argv[1:])
        watched: list[int] = []
        with watching() as watch:
            for line in sys.stdin:
                number, start = int(line), time.perf_counter()
                arm.step(number)
                print(json.dumps(time.perf_counter() - start), file=answers, flush=True)
                watched.append(number)
                if number <= arm.recipe.value.every_steps:  # the warm-up
                    watch.seconds.clear()
                    watched.clear()
        print(json.dumps(arm.measured(watch.seconds, watched, peak_memory_bytes())), file=answers, flush=True)


if __name__ == "__main__":
    main()
