"""The verifier benchmark's recipe."""

from __future__ import annotations

import pytest

from benchmarks.verifier import ARMS, parser, recipe_of
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
