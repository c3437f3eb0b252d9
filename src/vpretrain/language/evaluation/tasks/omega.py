"""Answers of OMEGA: right where they are equal as numbers, words or mathematics."""

from __future__ import annotations

from typing import Any

from vpretrain.language.evaluation.solve import is_correct


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """As lm-eval calls it: a row of the data set, and what the model wrote."""
    return {"exact_match": float(is_correct(results[0], doc["ground_truth"]))}
