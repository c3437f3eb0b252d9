"""Measure a judgement of the strength: its seconds, and the bytes of the step that follows it, against other steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.speed.peak import PeakBytes
from benchmarks.speed.settings import PERIOD, language_recipe
from vpretrain.language.assemble import assemble
from vpretrain.method.strength import LONGEST
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import train


def judgement(repeats: int) -> dict[str, Any]:
    """Measure a judgement on the packaged learner: both questions, as from a run's second judgement on.

    Returns:
        `seconds` of a judgement, the median difference of two consecutive steps; `share`, the fraction of a step's time that
        it takes in a long run; `peak_bytes` of the tensors that a step makes, by kind of step.
    """
    recipe: Any = language_recipe("smollm2-135m", "v", strength="auto")
    parts: Any = assemble(recipe)
    optimizer = AdamW(parts.learner.named_parameters(), recipe.optimizer, total_steps=1000)
    strength = parts.meta.strength
    strength.in_doubt = lambda judgement: True  # whatever the answer to the first question

    def step(number: int, *, judged: bool = False, share: float = 1.0) -> float:
        strength.beta, strength.next = share, parts.meta.updates + (0 if judged else 1)
        start = time.perf_counter()
        train(recipe, parts, optimizer, steps=[number], after_step=lambda record: None)
        return time.perf_counter() - start

    step(1)  # afterwards there is a metric
    step(PERIOD, judged=True)
    plain = [step(1) for _ in range(repeats)]
    judged = [step(PERIOD, judged=True) - step(PERIOD) for _ in range(repeats)]
    kinds: dict[str, Callable[[], float]] = {
        "one-hot": lambda: step(1, share=0.0),
        "tilted": lambda: step(1),
        "meta update": lambda: step(PERIOD),
        "judgement": lambda: step(PERIOD, judged=True),
    }
    peaks = {}
    for kind, made in kinds.items():
        with PeakBytes() as watched:
            made()
        peaks[kind] = watched.peak
    seconds = median(judged)
    return {"seconds": seconds, "share": seconds / (LONGEST * median(plain)), "peak_bytes": peaks}
