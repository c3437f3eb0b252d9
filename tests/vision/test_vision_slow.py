"""On the quickstart's real pretrained learner; minutes, by `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpretrain import load_recipe, run_recipe
from vpretrain.inspection.doctor import diagnose_recipe, failures

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-vision.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["jvp", "finite_difference"])
def test_the_engines_agree_on_the_quickstart_at_the_recipes_own_step(engine):
    diagnosis = diagnose_recipe(load_recipe(RECIPE, [f"value.engine={engine}"]))
    assert failures(diagnosis) == []
    assert diagnosis["engines"]["jvp"]["relative_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fixed_views_do_not_wreck_the_quickstart_learner(tmp_path):
    changes = ["arm=fixed", "budget.minutes=null", f"output={tmp_path}"]
    start = run_recipe(load_recipe(RECIPE, [*changes, "name=start", "budget.steps=0"]))
    fixed = run_recipe(load_recipe(RECIPE, [*changes, "name=fixed", "budget.steps=80"]))
    assert fixed.miou >= 0.95 * start.miou
    assert fixed.depth_rmse <= 1.05 * start.depth_rmse
    assert fixed.retrieval_map >= 0.95 * start.retrieval_map


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_v_with_the_quickstarts_settings_is_not_behind_fixed_views_after_equal_steps(tmp_path):
    changes = ["budget.minutes=null", "budget.steps=36", "value.strength=1", f"output={tmp_path}"]
    fixed, v = (run_recipe(load_recipe(RECIPE, [*changes, f"arm={arm}", f"name={arm}"])) for arm in ("fixed", "v"))
    assert v.mean_tilt > 0
    assert v.miou >= fixed.miou - 0.01
