"""The metrics of a language evaluation, as tables show them."""

from __future__ import annotations

from collections.abc import Sequence

from vpretrain.modality import Metrics, shown
from vpretrain.types import Json


def _intervals(seeds: Sequence[Sequence[Json]]) -> dict[str, float]:
    """Intervals of figures over several seeds, from the problems of each seed."""
    from vpretrain.compare.statistics import bootstrap_interval

    low, high = bootstrap_interval([[problem["nll"] for problem in problems] for problems in seeds])
    return {"answer_nll_low": low, "answer_nll_high": high}


def _sampled(pass_at_k: dict[str, float] | None) -> str:
    """Pass@k at the largest k."""
    if not pass_at_k:
        return "-"
    most = max(pass_at_k, key=int)
    return f"{pass_at_k[most]:.1%} (k = {most})"


METRICS = Metrics(
    headline="held-out answers",
    cases="problems",
    paired={"nll": "nats per token"},
    measured_on={"nll": "held-out answers"},
    better={"nll": "lower"},
    objectives={"answer_nll": (-1, "answer NLL"), "retention_nll": (-1, "retention NLL")},
    pareto_points=(),  # no points suit every recipe
    columns={
        "answer NLL [95 %]": lambda arm: (
            f"{arm['answer_nll']:.4f} [{arm['answer_nll_low']:.3f}, {arm['answer_nll_high']:.3f}]"
        ),
        "Pass@1": lambda arm: shown(arm["pass_at_1"], ".1%"),
        "Pass@k": lambda arm: _sampled(arm.get("pass_at_k")),
        "retention NLL": lambda arm: shown(arm["retention_nll"]),
    },
    curves={"loss": "training loss (nats per token)", "alpha": "mean gate alpha", "value": "value of the task"},
    intervals=_intervals,
)
