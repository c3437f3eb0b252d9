"""Time the meta update by engine: seconds and bytes, against layers in S, candidates and tokens.

Every engine gets the same batch with the same states below S, as the training pass leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.speed.peak import in_turns
from benchmarks.speed.settings import META_ROWS, language_recipe
from vpretrain.inspection.doctor import designer_gradient
from vpretrain.language.assemble import assemble
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import ENGINES, Align, MetaProblem, gradient

SHORT = ("jvp", "double_backward")


class Meta:
    """A learner with a stream batch and a feedback batch, on which engines are timed."""

    def __init__(self) -> None:
        recipe: Any = language_recipe("smollm2-135m", "v-paper", rows=4 * META_ROWS, accumulation=1)
        self.parts: Any = assemble(recipe)
        torch.manual_seed(1)
        with torch.no_grad():  # away from the initial values, at which much of the designer's gradient is zero
            for phi in self.parts.construction.parameters():
                phi.add_(0.02 * torch.randn_like(phi))
        self.batch = self.parts.stream.next()[0]
        (self.feedback,) = self.parts.feedback.next().values()

    def rows(self, engines: Sequence[str], repeats: int, *, layers: int, k: int, tokens: int, align: Any) -> list[Any]:
        """Time one setting: one row per engine, with medians of interleaved repeats."""
        learner = self.parts.learner
        learner.top_k = k
        names = alignment_subset(learner.module, f"last-{layers}")
        at = {name: p.detach() for name, p in learner.named_parameters() if name in names}
        batch = self.batch.restrict(rows=META_ROWS, length=tokens // META_ROWS)
        assert batch is not None
        assert batch.units == tokens, "too few rows have a target so early"
        with learner.meta_mode():
            g_down = gradient(lambda parameters: learner.evaluate(self.feedback, parameters), at)
            prepared = learner.prepare(batch, at)
            with torch.no_grad():
                learner.forward(prepared, at)
            problem = MetaProblem(learner, self.parts.construction, prepared, at, g_down, Align(align))

            def run(engine: str) -> None:
                designer_gradient(ENGINES[engine](problem), self.parts.designer, {})

            found = in_turns({engine: partial(run, engine) for engine in engines}, repeats)
        setting = {"layers": layers, "k": k, "tokens": batch.units, "align": align}
        return [setting | {"engine": engine} | figures for engine, figures in found.items()]
