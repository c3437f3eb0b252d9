"""Score answers of OMEGA: correct if equal as numbers, words or mathematics."""

from __future__ import annotations

from vpretrain.language.evaluation.solve import is_correct
from vpretrain.types import Json

TOLERANCE = 1e-3  # of numbers: version 1 of the paper, A.4


def process_results(doc: Json, results: list[str]) -> dict[str, float]:
    """Score one row; lm-eval calls this with the row of the data set and the model's outputs."""
    return {"exact_match": float(is_correct(results[0], doc["ground_truth"], within=TOLERANCE))}
