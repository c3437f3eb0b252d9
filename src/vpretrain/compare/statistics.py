"""Intervals of means over seeds and cases, and tests of several differences. Shapes: S seeds, N cases (problems, images).

Every seed has the same cases, and both are samples: an interval must hold for other seeds and other cases. The mean's variance
is the sum of three parts, of seeds, of cases and of what remains of each value:

    Var = V_seeds / S + V_cases / N + V_rest / (S N)

The spread of the seeds' means has an expectation of the first and third part, that of the cases' means of the second and third.
Each gives the half-width of an interval by Student's t, with S - 1 and N - 1 degrees of freedom, and the two are added in
quadrature (Graybill and Wang's way to bound a sum of variances). Where one part dominates this is Student's interval over it;
elsewhere it is a little too wide, as the third part counts twice. A bootstrap over few seeds is far too narrow: with two,
half of the resamples contain one seed only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

LEVEL = 0.95
_HALVINGS = 60  # of the range in which p lies


def interval(cases_by_seed: Sequence[Sequence[float]], level: float = LEVEL) -> tuple[float, float]:
    """Return the confidence interval of the mean.

    With one seed it holds for other cases, but not for other seeds; with one case the reverse; of a single value nothing is
    known.

    Args:
        cases_by_seed: [S, N], the same cases for every seed.
        level: of confidence.

    Example:
        >>> low, high = interval([[0.11, 0.25, 0.19], [0.02, 0.17, 0.14]])
    """
    mean, errors = _errors(cases_by_seed)
    half = _half_width(errors, 1 - level)
    return mean - half, mean + half


def paired_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the mean of a - b over the same seeds and cases, both [S, N], with its 95 % interval, and p: an interval at the
    level 1 - p just contains 0."""
    mean, errors = _errors([[x - y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)])
    half = _half_width(errors, 1 - LEVEL)
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": _p_of(mean, errors)}


def correct(differences: Iterable[dict[str, float]]) -> None:
    """Add `p_holm` to each difference: p, corrected by Holm for the number of differences that are read together."""
    ascending = sorted(differences, key=lambda difference: difference["p"])
    so_far = 0.0
    for rank, difference in enumerate(ascending):
        so_far = max(so_far, min(1.0, difference["p"] * (len(ascending) - rank)))
        difference["p_holm"] = so_far


def _errors(cases_by_seed: Sequence[Sequence[float]]) -> tuple[float, list[tuple[int, float]]]:
    """Return the mean; and degrees of freedom and standard error over seeds and over cases, of those with more than one."""
    import numpy as np

    x_SN = np.asarray(cases_by_seed, dtype=np.float64)
    means = [x_SN.mean(axis) for axis in (1, 0)]
    errors = [(len(x) - 1, float(x.std(ddof=1)) / math.sqrt(len(x))) for x in means if len(x) > 1]
    return float(x_SN.mean()), errors


def _half_width(errors: Sequence[tuple[int, float]], p: float) -> float:
    from scipy.special import stdtrit

    if not errors:
        return math.inf
    return math.hypot(*(error * float(stdtrit(freedom, p / 2)) for freedom, error in errors))


def _p_of(mean: float, errors: Sequence[tuple[int, float]]) -> float:
    if math.isnan(mean):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _half_width(errors, middle) < abs(mean) else (middle, high)
    return high
