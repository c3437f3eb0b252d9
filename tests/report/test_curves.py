"""Curves of many steps and several seeds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from report.directories import write_comparison

from vpretrain.report.curves import between_seeds, thin
from vpretrain.report.page import report


@pytest.mark.parametrize("points", [1, 7, 240, 241, 20_000])
def test_thinning_keeps_extremes_and_means(points):
    draw = np.random.default_rng(points)
    x, y = np.arange(points), draw.normal(size=(2, points))
    y[0, points // 3], y[1, points // 2] = 99.0, -99.0  # lost by any thinning that skips
    band = thin([(x, y[0]), (x, y[1])])
    assert len(band.x) == min(points, 240)
    assert (band.low.min(), band.high.max()) == (y.min(), y.max())
    assert np.all(np.diff(band.x) > 0)
    assert np.all((band.low <= band.mean) & (band.mean <= band.high))
    where = np.abs(band.x - points // 2).argmin()
    assert band.low[where] == -99.0
    edges = np.append((band.x[1:] + band.x[:-1]) / 2, np.inf)
    own = np.searchsorted(edges, x)
    for each in {0, len(band.x) // 2, len(band.x) - 1}:
        of_band = y[:, own == each]
        assert of_band.size
        assert band.mean[each] == pytest.approx(of_band.mean())
        assert (band.low[each], band.high[each]) == (of_band.min(), of_band.max())


def test_thinning_leaves_out_what_is_no_number():
    band = thin([([0, 1, 2], [1.0, float("nan"), 3.0])])
    assert band.mean.tolist() == [1.0, 3.0]


def test_seeds_are_met_where_all_have_got():
    band = between_seeds([([0, 2, 4], [4.0, 2.0, 0.0]), ([0, 3], [4.0, 7.0])])
    assert band.x.tolist() == [0, 2, 3]
    assert band.mean.tolist() == [4.0, 4.0, 4.0]
    assert band.low.tolist() == [4.0, 2.0, 1.0]
    assert band.high.tolist() == [4.0, 6.0, 7.0]


def test_twenty_thousand_steps_are_a_small_page_in_seconds(tmp_path):
    write_comparison(tmp_path / "study", steps=20_000, seeds=(0,))
    begun = time.monotonic()
    file = report([tmp_path / "study"], tmp_path / "report.html")
    assert time.monotonic() - begun < 20
    assert file.stat().st_size < 2 * 2**20
