"""How tables show what a language evaluation measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEADLINE = "held-out answers"
CASES = "problems"  # what is evaluated one by one
PAIRED = {"nll": "nats a token"}  # of every case: what arms are compared by, with its unit

# What is traded by settings: -1 where less is better; with its title. There are no points that suit every recipe.
OBJECTIVES = {"answer_nll": (-1, "answer NLL"), "retention_nll": (-1, "retention NLL")}
PARETO_POINTS: list[list[str]] = []

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "answer NLL [95 %]": lambda arm: (
        f"{arm['answer_nll']:.4f} [{arm['answer_nll_low']:.3f}, {arm['answer_nll_high']:.3f}]"
    ),
    "Pass@1": lambda arm: "-" if arm["pass_at_1"] is None else f"{arm['pass_at_1']:.1%}",
    "retention NLL": lambda arm: "-" if arm["retention_nll"] is None else f"{arm['retention_nll']:.4f}",
}

CURVES = {"loss": "training loss (nats a token)", "alpha_N": "mean gate alpha", "value": "value of the task"}
