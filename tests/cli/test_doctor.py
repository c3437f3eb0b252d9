"""`doctor`: engines against the oracle, on a learner alone and as a recipe's run would meet them."""

from __future__ import annotations

import json

import pytest
from commands import refusal
from models import tiny_model, tiny_vision_model

from vpretrain.cli.parser import main


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_doctor_agrees_with_the_oracle_on_a_saved_learner_with_random_weights(tmp_path, capsys, family):
    tiny_model(family).save_pretrained(tmp_path / "saved")
    assert main(["doctor", "--learner", str(tmp_path / "saved"), "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    engines = diagnosis["engines"]
    assert engines["jvp"]["relative_error"] <= 1e-5
    assert engines["finite_difference"]["relative_error"] <= 1e-3
    assert engines["double_backward"]["relative_error"] == 0.0
    assert all(engine["seconds"] > 0 for engine in engines.values())
    assert main(["doctor", "--learner", str(tmp_path / "saved")]) == 0
    assert "double_backward" in capsys.readouterr().out


def test_doctor_finds_the_modality_of_a_runs_model(tmp_path):
    from vpretrain.inspection.doctor import _modality

    for name, model in (("vision", tiny_vision_model()), ("language", tiny_model())):
        model.save_pretrained(tmp_path / name / "model")
        (tmp_path / name / "recipe.yaml").touch()
        assert _modality(str(tmp_path / name)).name == name
    assert _modality(str(tmp_path / "nowhere")).name == "language"  # whose loader says what is wrong


def test_doctor_takes_a_recipe_or_a_learner(capsys):
    told = refusal(capsys, "doctor", "recipe.yaml", "--learner", "gpt2")
    assert "a recipe has a learner of its own: leave --learner out" in told


@pytest.mark.parametrize("engine", ["jvp", "finite_difference"])
def test_doctor_examines_a_recipe_as_its_run_would_meet_it(recipe, capsys, engine):
    path = recipe({"value": {"align": "dot", "engine": engine}})
    assert main(["doctor", path, "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert (diagnosis["engine"], diagnosis["align"], diagnosis["subset"]) == (engine, "dot", "last-2")
    assert diagnosis["engines"]["jvp"]["relative_error"] <= 1e-5
    assert diagnosis["engines"]["jvp"]["relative_error_gate"] <= 1e-5
    assert main(["doctor", path, "value.relative_step=0.3"]) == (0 if engine == "jvp" else 1)
    assert ("value.relative_step=0.3 is off by" in capsys.readouterr().err) == (engine == "finite_difference")


def test_doctor_fails_loudly_on_a_silent_zero_or_a_wrong_engine():
    from vpretrain.inspection.doctor import failures

    engines = {"jvp": {"relative_error": 1e-7}, "finite_difference": {"relative_error": 1e-4}}
    assert failures({"designer_gradient_norm": 0.1, "engines": engines}) == []
    assert "does not reach the designer" in failures({"designer_gradient_norm": 0.0, "engines": engines})[0]
    wrong = engines | {"jvp": {"relative_error": float("nan")}}
    assert "set value.engine=finite_difference" in failures({"designer_gradient_norm": 0.1, "engines": wrong})[0]
    own = {"engine": "finite_difference", "relative_step": 1e-5, "finite_difference_sweep": {"1e-05": 1e-4}}
    assert failures({"designer_gradient_norm": 0.1, "engines": wrong} | own) == []  # which has taken that advice
