"""The verifier benchmark's recipe."""

from __future__ import annotations

import pytest

from benchmarks.verifier import ARMS, markdown, parser, recipe_of, summary
from vpretrain.compare.entry import check_entries


@pytest.mark.parametrize("settings", [[], ["--minutes", "1", "feedback.attempts=8"]])
def test_all_arms_have_the_same_problems_and_time_and_one_v_has_their_solutions(settings):
    recipe = recipe_of(parser().parse_args(settings))
    entries = check_entries(recipe, ARMS)
    assert [entry.arm for entry in entries] == ["one-hot", "v", "v", "grpo-feedback"]
    assert [entry.settings for entry in entries if entry.settings] == [("feedback.reward=solution",)]
    assert recipe.feedback.reward == "answer"
    assert recipe.budget.minutes == (1 if settings else 4)
    assert recipe.feedback.attempts == (8 if settings else 4) >= recipe.direct.group
    parts = [section.sources[0].part for section in (recipe.evaluation, recipe.feedback, recipe.stream)]
    assert parts == [(0.0, 0.1), (0.1, 0.2), (0.2, 1.0)]


def test_the_table_compares_v_with_every_other_arm_in_what_the_benchmark_is_about():
    arms = ("step-0", *ARMS)
    figures = {
        "answer_nll": 1.0,
        "answer_top_1": 0.5,
        "pass_at_1": 0.25,
        "retention_nll": 3.0,
        "steps": 20,
        "seconds": 240.0,
    }
    minus = {"mean": 0.1, "low": 0.05, "high": 0.15}
    of = {a: {b: {**minus, "p": 0.001 if b == "one-hot" else 0.04} for b in arms if b != a} for a in arms}
    results = {
        "seeds": [0, 1],
        "remarks": [],
        "arms": dict.fromkeys(arms, figures),
        "differences": {"nll": of, "solved": of},
    }
    found = summary(results)["arms"]
    assert found["v"]["v_solved_minus_it"] is None
    assert {arm: found[arm]["v_solved_minus_it"]["p_holm"] for arm in ARMS if arm != "v"} == pytest.approx(
        {"one-hot": 0.003, "v:feedback.reward=solution": 0.08, "grpo-feedback": 0.08}
    )
    lines = [[cell.strip() for cell in line.split("|")] for line in markdown(summary(results)).splitlines()]
    rows = {cells[1]: cells[2:-1] for cells in lines if len(cells) > 2}
    shown = "+0.100 [+0.050, +0.150]"
    assert rows["grpo-feedback"] == ["25.0%", shown, shown, "1.000", shown, shown, "50.0%", "3.000", "20", "240"]
    assert rows["one-hot"][1:3] == ["-", f"**{shown}**"]
