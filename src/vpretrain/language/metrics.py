"""The metrics of a language evaluation, as tables show them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller

from vpretrain.modality import Measure, Metrics, Paired
from vpretrain.types import Json


def _intervals(seeds: Sequence[Sequence[Json]]) -> dict[str, float]:
    """Intervals of figures over several seeds, from the problems of each seed."""
    from vpretrain.compare.statistics import interval

    low, high = interval([[problem["nll"] for problem in problems] for problems in seeds])
    return {"answer_nll_low": low, "answer_nll_high": high}


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    """A figure and its interval, which a single problem does not have."""
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.3f}, {high:.3f}]"


def _sampled(pass_at_k: dict[str, float] | None) -> str:
    """Pass@k at the largest k."""
    if not pass_at_k:
        return "-"
    most = max(pass_at_k, key=int)
    return f"{pass_at_k[most]:.1%} (k = {most})"


def _pass_at_most(arm: Json) -> float | None:
    pass_at_k = arm.get("pass_at_k")
    return pass_at_k[max(pass_at_k, key=int)] if pass_at_k else None


_MEASURES = {
    "answer NLL": Measure(methodcaller("get", "answer_nll"), ".4f", "lower", paired="nll"),
    "tempered answer NLL": Measure(methodcaller("get", "answer_nll_tempered"), ".4f", "lower", paired="nll_tempered"),
    "top-1": Measure(methodcaller("get", "answer_top_1"), ".1%", "higher", paired="top_1"),
    "Pass@1": Measure(methodcaller("get", "pass_at_1"), ".1%", "higher", paired="solved"),
    "Pass@k": Measure(_pass_at_most, ".1%", "higher"),
    "retention NLL": Measure(methodcaller("get", "retention_nll"), ".4f", "lower"),
}
METRICS = Metrics(
    headline=lambda recipe: "held-out answers",
    cases="problems",
    paired={
        "nll": Paired("nats per token", "held-out answers", "lower"),
        "nll_tempered": Paired(
            "nats per token",
            "held-out answers after one temperature per arm",
            "lower",
            beside=True,
            remainder_of="nll",
        ),
        "top_1": Paired("of the tokens", "the likeliest tokens of held-out answers", "higher", beside=True),
        "solved": Paired("of the problems", "problems that greedy decoding solves (Pass@1)", "higher", beside=True),
    },
    objectives={"answer_nll": (-1, "answer NLL"), "retention_nll": (-1, "retention NLL")},
    pareto_points=(),  # no points suit every recipe
    columns={
        "answer NLL [95 %]": lambda arm: _with_interval(
            arm["answer_nll"], arm["answer_nll_low"], arm["answer_nll_high"]
        ),
        "tempered": _MEASURES["tempered answer NLL"].cell,
        "top-1": _MEASURES["top-1"].cell,
        "Pass@1": _MEASURES["Pass@1"].cell,
        "Pass@k": lambda arm: _sampled(arm.get("pass_at_k")),
        "retention NLL": _MEASURES["retention NLL"].cell,
    },
    measures=_MEASURES,
    curves={"loss": "training loss (nats per token)", "alpha": "mean gate alpha", "value": "value of the task"},
    intervals=_intervals,
    also_plotted={"pass_at_1": (1, "Pass@1")},
)
