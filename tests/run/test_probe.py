"""The one-step probe: predictions are first-order exact, and watching changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain.cli.parser import main
from vpretrain.inspection.probe import agreement, probe
from vpretrain.recipe import save_recipe
from vpretrain.run import run_recipe
from vpretrain.run.checkpoint import checkpoints, load_checkpoint


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_small_steps_do_what_was_predicted(tmp_path, tokenizer, modality):
    small = {"optimizer": {"lr": 3e-5, "warmup_fraction": 0.0}, "arm": "v"}
    recipe = tiny_recipe(tmp_path, tokenizer, **small) if modality == "language" else vision_recipe(tmp_path, **small)
    results = probe(recipe, 8)
    assert len(results["steps"]) == 8
    assert results["full"]["pearson_r"] > 0.98
    assert results["full"]["slope"] == pytest.approx(1, abs=0.15)
    assert any(step["predicted"] != step["predicted_subset"] for step in results["steps"])


def test_a_subset_of_everything_predicts_the_same(tmp_path, tokenizer):
    results = probe(tiny_recipe(tmp_path, tokenizer, arm="one-hot", value={"subset": "all"}), 4)
    assert results["full"] == pytest.approx(results["subset"])


def test_watching_changes_nothing(tmp_path, tokenizer, monkeypatch):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")  # an arm that draws no feedback of its own
    run_recipe(recipe)
    groups, _ = load_checkpoint(checkpoints(recipe.directory / "checkpoints")[-1])
    seen = {}
    from vpretrain.inspection.probe import OneStepProbe

    look = OneStepProbe._look
    monkeypatch.setattr(OneStepProbe, "_look", lambda self: seen.update(learner=self.parts.learner) or look(self))
    probe(recipe, 6)
    for name, theta in seen["learner"].named_parameters():
        assert torch.equal(theta, groups["learner"][name]), name


def test_the_command_writes_figures_and_a_picture(tmp_path, tokenizer, capsys):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    assert main(["probe", str(tmp_path / "recipe.yaml"), "--steps", "4", "arm=v"]) == 0
    assert "Pearson r" in capsys.readouterr().out
    saved = json.loads((tmp_path / "runs/tiny/probe.json").read_text())
    assert saved["arm"] == "v"
    assert agreement(saved["steps"], "predicted") == saved["full"]
    assert (tmp_path / "runs/tiny/probe.png").stat().st_size > 1000
