"""Compare every metric of an arm with another arm's: better, worse, or equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vpretrain.compare.alike import trained_as
from vpretrain.compare.results import START, pairs
from vpretrain.compare.statistics import LEVEL
from vpretrain.compare.tables import signed
from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.types import Json

_ROUNDING = 1e-3  # the relative difference up to which figures without an interval count as equal

Direction = Literal["better", "worse", "equal"]


@dataclass(frozen=True)
class Change:
    """One metric of an arm beside another's, as tables show it."""

    title: str
    other: str
    own: str
    direction: Direction  # by these numbers alone; equal if they look equal, or nearly so without an interval
    certain: bool | None  # `excludes_0` of the paired difference; None: there is no interval
    in_headline: bool  # whether the verdict's first sentence has this difference already

    @property
    def doubt(self) -> str:
        """A reason to doubt the direction, in brackets, to be written after it; empty: there is none."""
        if self.direction == "equal" or self.certain:
            return ""
        return " (no interval)" if self.certain is None else " (may be chance)"


def subject(results: Json, recipe: Recipe) -> tuple[str, str] | None:
    """Return the arm that a verdict is about, and the one that it is compared with; None if nothing can be compared.

    V and the baseline if both ran, else the first arm and the baseline or the untouched learner.
    """
    trained = [name for name, arm in results["arms"].items() if arm["steps"]]
    if not trained or not results["of"]:
        return None
    wanted = pairs(trained, recipe.baseline)
    v = ("v", recipe.baseline)
    return v if v in wanted else wanted[0] if wanted else (trained[0], START)


def changes(results: Json, recipe: Recipe, arm: str, other: str) -> list[Change]:
    """Compare an arm with another one, or with the untouched learner, in every metric that both have."""
    found = []
    judged = subject(results, recipe)
    for title, measure in modality_of(recipe).metrics.measures.items():
        before, after = (measure.of(results["arms"][name]) for name in (other, arm))
        if before is None or after is None:
            continue
        old, new = (f"{value:{measure.form}}{measure.unit}" for value in (before, after))
        better = math.isnan(before) or (after > before if measure.better == "higher" else after < before)
        direction: Direction = "better" if better else "worse"  # NaN is worse than any number
        by_case = results["differences"].get(measure.paired, {}).get(arm, {}).get(other)
        difference = by_case or results.get("over_seeds", {}).get(title, {}).get(arm, {}).get(other)
        certain = None if difference is None else excludes_0(difference)
        in_headline = by_case is not None and (arm, other) == judged
        equal = old == new or (certain is None and math.isclose(before, after, rel_tol=_ROUNDING))
        found.append(Change(title, old, new, "equal" if equal else direction, certain, in_headline))
    return found


def excludes_0(difference: Mapping[str, float]) -> bool:
    """Whether the interval excludes 0, also after the correction for the number of differences; not if a result is NaN."""
    excludes = difference["low"] > 0 or difference["high"] < 0
    return excludes and difference.get("p_holm", 0.0) < 1 - LEVEL  # older results have some without it


def relation(difference: Mapping[str, float], better: str) -> str:
    """Return how an arm compares with the other one of a difference, in words, no further than the interval allows."""
    if not excludes_0(difference):
        return "cannot be told from"
    return "is better than" if (difference["mean"] < 0) == (better == "lower") else "is worse than"


def headline(results: Json, recipe: Recipe) -> str:
    """Return the result of a comparison in a few words, for lists."""
    judged = subject(results, recipe)
    if judged is None:
        return "nothing to compare"
    arm, other = judged
    if (base := trained_as(results, recipe, arm)) != arm:
        return f"{arm} trained exactly as {base}: this says nothing about V"
    key, unit = next(iter(results["of"].items()))
    found = results["differences"][key][arm][other]
    wording = relation(found, modality_of(recipe).metrics.paired[key].better)
    alone = ", one seed" if len(results["seeds"]) == 1 else ""
    return f"{arm} {wording} {other}: {signed(found)[0]} {unit}{alone}"
