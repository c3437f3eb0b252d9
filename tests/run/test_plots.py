"""Figures of a comparison: what is drawn against what, and when there is nothing to draw."""

from __future__ import annotations

import pytest
from worlds import tiny_recipe, vision_recipe

from vpretrain.compare.plots import by_setting, draw_pass_at_k, draw_settings
from vpretrain.plot import name_lines, pyplot, save_figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of closing them."""
    kept = []
    monkeypatch.setattr("matplotlib.pyplot.close", kept.append)
    return kept


@pytest.fixture
def recipe(tmp_path, tokenizer):
    it = tiny_recipe(tmp_path, tokenizer)
    it.directory.mkdir(parents=True)
    return it


def arm(nll, solved, **more):
    return {"answer_nll": nll, "retention_nll": None, "pass_at_1": solved, **more}


def test_entries_that_differ_in_one_number_alone_are_a_line():
    labels = ["step-0", "v", "v:a.b=16", "v:a.b=4", "v:a.b=8:c=1", "v:c=2:a.b=8", "v:c=dot", "one-hot:a.b=4"]
    assert by_setting(labels) == {
        ("v", "a.b"): [(4.0, "v:a.b=4"), (16.0, "v:a.b=16")],
        ("v:a.b=8", "c"): [(1.0, "v:a.b=8:c=1"), (2.0, "v:c=2:a.b=8")],
    }
    assert by_setting(["step-0", "v", "v:a.b=16"]) == {}


def test_scores_are_drawn_against_the_setting_beside_the_arms_without_it(recipe, figures):
    seeds = [arm(2.4, 0.1), arm(2.6, 0.3)]
    arms = {
        "step-0": arm(4.0, 0.0),
        "one-hot": arm(3.0, 0.1),
        "v:feedback.sources.0.limit=16": arm(2.0, 0.4),
        "v:feedback.sources.0.limit=4": arm(2.5, 0.2, runs=seeds),
    }
    assert draw_settings({"arms": arms}, recipe).stat().st_size > 1000
    nll, solved = figures[0].axes
    assert (nll.get_title(), solved.get_title()) == ("answer NLL", "Pass@1")  # retention was not measured
    assert solved.get_xlabel() == "feedback.sources.0.limit"
    lines = {line.get_label(): line.get_xydata().tolist() for line in solved.get_lines()}
    assert lines["v"] == [[4, 0.2], [16, 0.4]]
    assert [y for _, y in lines["one-hot"]] == [0.1, 0.1]
    (dots,) = [line for line in solved.get_lines() if line.get_linestyle() == "None"]
    assert dots.get_xydata().tolist() == [[4, 0.1], [4, 0.3], [16, 0.4]]


def test_without_a_setting_that_varies_nothing_is_drawn(recipe, figures):
    assert draw_settings({"arms": {"step-0": arm(4.0, 0.0), "v:value.align=dot": arm(2.0, 0.4)}}, recipe) is None
    assert figures == []


def test_where_no_score_was_measured_nothing_is_drawn(tmp_path, figures):
    unmeasured = {"miou": None, "depth_rmse": None}
    arms = {"fixed": unmeasured, "v:value.divergence=0.1": unmeasured, "v:value.divergence=0.2": unmeasured}
    assert draw_settings({"arms": arms}, vision_recipe(tmp_path)) is None
    assert figures == []


def test_pass_at_k_is_drawn_against_k(recipe, figures):
    arms = {
        "step-0": {"pass_at_k": {"1": 0.1, "2": 0.15, "4": 0.2}},
        "v": {"pass_at_k": {"1": 0.2, "4": 0.6, "2": 0.4}},
    }
    assert draw_pass_at_k({"arms": arms}, recipe).stat().st_size > 1000
    lines = {line.get_label(): line.get_xydata().tolist() for line in figures[0].axes[0].get_lines()}
    assert lines == {"step-0": [[1, 0.1], [2, 0.15], [4, 0.2]], "v": [[1, 0.2], [2, 0.4], [4, 0.6]]}
    assert draw_pass_at_k({"arms": {"step-0": {}, "v": {}}}, recipe) is None


@pytest.mark.parametrize(("settings", "columns"), [("", 3), (":a.setting=1" * 3, 2), (":a.setting=1" * 6, 1)])
def test_lines_with_long_names_leave_their_panels_room(tmp_path, settings, columns):
    figure, axes = pyplot().subplots(1, 2, figsize=(8.6, 3.8), layout="constrained")
    for axis in axes:
        for number in range(3):
            axis.plot([0, 1], [number, number], label=f"{number}{settings}")
    name_lines(figure)
    save_figure(figure, tmp_path / "figure.png")
    (legend,) = figure.legends
    assert (len(legend.get_texts()), legend._ncols) == (3, columns)
    below = legend.get_window_extent()
    assert figure.bbox.x0 <= below.x0 < below.x1 <= figure.bbox.x1
    for axis in axes:
        panel = axis.get_window_extent()
        assert panel.y0 >= below.y1
        assert (panel.width > 0.35 * figure.bbox.width, panel.height > 0.6 * figure.bbox.height) == (True, True)
