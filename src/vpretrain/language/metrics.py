"""How tables show what a language evaluation measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

HEADLINE = "held-out answers"
CASES = "problems"  # what is evaluated one by one
PAIRED = {"nll": "nats a token"}  # of every case: what arms are compared by, with its unit
ON = {"nll": "held-out answers"}  # what each of them judges
BETTER = {"nll": "lower"}

# What is set to match V, and so runs after it: its settings from V's result.
FOLLOW_V: dict[str, Callable[[dict[str, Any]], list[str]]] = {}

# What is traded by settings: -1 where less is better; with its title. There are no points that suit every recipe.
OBJECTIVES = {"answer_nll": (-1, "answer NLL"), "retention_nll": (-1, "retention NLL")}
PARETO_POINTS: list[list[str]] = []

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "answer NLL [95 %]": lambda arm: (
        f"{arm['answer_nll']:.4f} [{arm['answer_nll_low']:.3f}, {arm['answer_nll_high']:.3f}]"
    ),
    "Pass@1": lambda arm: "-" if arm["pass_at_1"] is None else f"{arm['pass_at_1']:.1%}",
    "Pass@k": lambda arm: _sampled(arm.get("pass_at_k")),
    "retention NLL": lambda arm: "-" if arm["retention_nll"] is None else f"{arm['retention_nll']:.4f}",
}

CURVES = {"loss": "training loss (nats a token)", "alpha_N": "mean gate alpha", "value": "value of the task"}


def intervals(seeds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Of figures over several seeds, from the problems of each."""
    from vpretrain.compare.statistics import bootstrap_interval

    low, high = bootstrap_interval([[problem["nll"] for problem in problems] for problems in seeds])
    return {"answer_nll_low": low, "answer_nll_high": high}


def _sampled(pass_at_k: dict[str, float] | None) -> str:
    """At the most samples."""
    if not pass_at_k:
        return "-"
    most = max(pass_at_k, key=int)
    return f"{pass_at_k[most]:.1%} (k = {most})"
