"""The warning about targets that were never moved gives the reason that is known."""

from __future__ import annotations

import pytest
from report.directories import recipe_data

from vpretrain.method.untilted import untilted
from vpretrain.recipe import parse_recipe


@pytest.mark.parametrize(
    ("steps", "updates", "settings", "earliest"),
    [
        (7, 0, {}, 8),
        (20, 0, {}, 8),
        (40, 0, {}, None),  # a verifier had nothing to tell
        (7, 1, {}, None),  # it was judged
        (30, 0, {"value": {"every_steps": 32}}, 32),
        (30, 0, {"designer": {"burn_in_steps": 20}}, 28),
        (7, 0, {"value": {"strength": 0.0}}, None),  # as the recipe wants it
    ],
)
def test_a_run_that_ended_before_its_first_judgement_was_too_short(tmp_path, steps, updates, settings, earliest):
    recipe = parse_recipe(recipe_data(tmp_path, **settings))
    result = {"steps": steps, "meta_updates": updates, "mean_alpha": 0.0}
    said = untilted(recipe, result, mean="mean_alpha", stayed="one-hot", shorter="stream.length")
    assert said.startswith("the targets stayed one-hot")
    assert (f"judged after {earliest} steps at the earliest" in said) == (earliest is not None)
    assert ("agreed on no direction" in said) == (earliest is None)
