"""Run one arm in its own process: `python -m benchmarks.speed.worker LEARNER ARM` makes a step for every number it is given.

Reads step numbers, one per line; answers each with JSON: the step's seconds. At the end of the input: the units read per step,
the seconds of each phase, the peak of resident memory.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch

from benchmarks.speed.settings import LANGUAGE, language_model, language_recipe, vision_recipe
from vpretrain.modality import modality_of
from vpretrain.run.finish import peak_memory_bytes
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import train
from vpretrain.timing import watching

HF = "hf"  # plain transformers: model(labels=...).loss, backward, clip, AdamW


class Worker:
    """An arm, ready to make steps."""

    def __init__(self, learner: str, arm: str) -> None:
        torch.manual_seed(0)
        own = "one-hot" if arm == HF else arm
        self.recipe: Any = language_recipe(learner, own) if learner in LANGUAGE else vision_recipe(own)
        model = language_model(learner) if learner in LANGUAGE else None
        self.parts: Any = modality_of(self.recipe).assemble(self.recipe, model)
        self.optimizer = AdamW(self.parts.learner.named_parameters(), self.recipe.optimizer, total_steps=1000)
        self.step = self._plain if arm == HF else self._ours
        self.read = 0

    def _ours(self, number: int) -> None:
        train(self.recipe, self.parts, self.optimizer, steps=[number], after_step=self._count)

    def _count(self, record: Any) -> None:
        self.read = record.tokens

    def _plain(self, number: int) -> None:
        learner, optimizer = self.parts.learner, self.optimizer.torch
        batches = self.parts.stream.next()
        for batch in batches:
            labels_BT = batch.ids_BT.masked_fill(batch.weights_BT == 0, -100)
            with torch.autocast(learner.device.type, dtype=torch.bfloat16, enabled=learner.bf16):
                # Without a cache: with one, transformers would let documents of a row attend to each other.
                outputs = learner.model(
                    input_ids=batch.ids_BT, position_ids=batch.positions_BT, labels=labels_BT, use_cache=False
                )
            (outputs.loss / len(batches)).backward()
            del outputs
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), self.recipe.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.read = sum(batch.tokens for batch in batches)


def main() -> None:
    """Make the steps that are asked for on stdin."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        worker = Worker(*sys.argv[1:])
        with watching() as watch:
            for line in sys.stdin:
                start = time.perf_counter()
                worker.step(int(line))
                print(json.dumps(time.perf_counter() - start), file=answers, flush=True)
                if int(line) < worker.recipe.value.every_steps:  # the first period is a warm-up
                    watch.seconds.clear()
        figures = {"read": worker.read, "phases": watch.seconds, "peak_bytes": peak_memory_bytes()}
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main()
