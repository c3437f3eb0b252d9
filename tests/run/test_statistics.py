"""Intervals that cover, and corrections for several comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vpretrain.compare.statistics import correct, interval, paired_difference


def test_an_interval_of_one_seed_is_student_s_over_cases():
    x = np.random.default_rng(0).normal(size=40)
    assert interval([x.tolist()]) == pytest.approx(stats.ttest_1samp(x, 0).confidence_interval(0.95))


def test_an_interval_of_one_case_is_student_s_over_seeds():
    x = np.random.default_rng(0).normal(size=5)
    found = interval([[value] for value in x.tolist()], level=0.9)
    assert found == pytest.approx(stats.ttest_1samp(x, 0).confidence_interval(0.9))


def test_half_widths_over_seeds_and_cases_add_in_quadrature():
    x = np.random.default_rng(0).normal(size=(4, 9))
    over = [stats.ttest_1samp(x.mean(axis), 0).confidence_interval(0.95) for axis in (0, 1)]
    low, high = interval(x.tolist())
    assert high - low == pytest.approx(math.hypot(*(upper - lower for lower, upper in over)))
    assert (high + low) / 2 == pytest.approx(x.mean())


def test_a_single_value_says_nothing():
    assert interval([[1.0]]) == (-math.inf, math.inf)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("of_seeds", "of_cases", "of_rest", "cases"),
    [(1.5, 1.0, 1.0, 48), (0.0, 1.0, 0.5, 48), (0.15, 1.0, 1.0, 48), (1.0, 1.0, 1.0, 5)],
    ids=["seeds differ", "cases differ", "both", "few cases"],
)
def test_intervals_cover_the_truth_for_other_seeds_and_other_cases(seeds, of_seeds, of_cases, of_rest, cases):
    random, covered, runs = np.random.default_rng(seeds), 0, 500
    for _ in range(runs):
        x = of_seeds * random.normal(size=(seeds, 1)) + of_cases * random.normal(size=(1, cases))
        low, high = interval((x + of_rest * random.normal(size=(seeds, cases))).tolist())
        covered += low < 0 < high
    assert (
        covered / runs > 0.925
    )  # 2.5 standard errors below 0.95; a crossed bootstrap gives .63 to .90 if seeds differ


def test_p_is_where_the_interval_meets_0():
    b = np.random.default_rng(0).normal(size=(3, 8))
    a = b + np.random.default_rng(1).normal(0.6, 1, size=(3, 8))
    found = paired_difference(a.tolist(), b.tolist())
    assert interval((a - b).tolist(), level=1 - found["p"])[0] == pytest.approx(0, abs=1e-9)
    assert (found["low"], found["high"]) == interval((a - b).tolist())
    assert found["mean"] == pytest.approx((a - b).mean())


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)])
def test_p_of_constant_differences(value, p):
    assert paired_difference([[value, value]] * 2, [[0.0, 0.0]] * 2)["p"] == pytest.approx(p)


def test_holm_s_correction():
    differences = [{"p": p} for p in (0.04, 0.01, 0.3, 0.02)]
    correct(differences)
    assert [d["p_holm"] for d in differences] == pytest.approx([0.08, 0.04, 0.3, 0.06])
