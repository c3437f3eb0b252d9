"""The one-step probe: predictions are first-order exact, and watching changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain.cli.parser import main
from vpretrain.inspection import probe as module
from vpretrain.inspection.probe import PREDICTIONS, agreement, probe
from vpretrain.language.assemble import load_learner, subset_of
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.method.subset import alignment_subset
from vpretrain.recipe import save_recipe
from vpretrain.run import run_recipe
from vpretrain.run.checkpoint import checkpoints, load_checkpoint

V = ["arm=v", "value.strength=1", "value.every_steps=1"]
SMALL = {"optimizer": {"lr": 3e-5, "warmup_fraction": 0.0}, "arm": "v"}


@pytest.fixture
def same_batch(monkeypatch):
    """The batch that predicts is the batch that is held out, so that only the steps' curvature is left."""

    class Same(module.OneStepProbe):
        def _before(self):
            draw, kept = self.parts.feedback.next, []
            self.parts.feedback.next = lambda: kept[0] if kept else kept.append(draw()) or kept[0]
            super()._before()
            self.parts.feedback.next = draw

    monkeypatch.setattr(module, "OneStepProbe", Same)


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_small_steps_do_what_was_predicted(tmp_path, tokenizer, modality, same_batch):
    small = SMALL | {"value": {"strength": 1.0, "every_steps": 2}}
    recipe = tiny_recipe(tmp_path, tokenizer, **small) if modality == "language" else vision_recipe(tmp_path, **small)
    results = probe(recipe, 8)
    assert len(results["steps"]) == 8
    for name in ("full", "gain"):
        assert results[name]["pearson_r"] > 0.98, name
        assert results[name]["slope"] == pytest.approx(1, abs=0.15), name
    assert any(step["predicted"] != step["predicted_subset"] for step in results["steps"])


def test_a_subset_of_everything_predicts_the_same(tmp_path, tokenizer):
    results = probe(tiny_recipe(tmp_path, tokenizer, arm="one-hot", value={"subset": "all"}), 4)
    assert results["full"] == pytest.approx(results["subset"])


@pytest.mark.parametrize("modality", ["language", "vision"])  # the latter's learner drops paths at random
def test_the_base_task_has_no_gain_over_itself(tmp_path, tokenizer, modality):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")
    results = probe(recipe if modality == "language" else vision_recipe(tmp_path, arm="fixed"), 4)
    assert [step["realised_gain"] for step in results["steps"]] == [None] * 4
    assert results["gain"] == results["seen"] == {"pearson_r": None, "slope": None}


def test_the_predictions_of_an_arm_with_its_own_subset_are_over_that(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="v-paper", value={"subset": "last-1"})
    learner = load_learner(recipe)[0]
    own, other = (set(alignment_subset(learner.module, subset)) for subset in ("last-2", "last-1"))
    assert set(subset_of(recipe, learner)) == own > other


def test_what_one_batch_predicts_is_measured_on_another(tmp_path, tokenizer, monkeypatch):
    read: dict[bool, list] = {True: [], False: []}
    evaluate = LanguageLearner.evaluate

    def recorded(self, batch, parameters):
        read[torch.is_grad_enabled()].append(batch.keys)
        return evaluate(self, batch, parameters)

    monkeypatch.setattr(LanguageLearner, "evaluate", recorded)
    probe(tiny_recipe(tmp_path, tokenizer, arm="one-hot"), 3)
    assert len(read[True]) == 3
    for step, predicted_from in enumerate(read[True]):
        measured_on = set(read[False][3 * step : 3 * step + 3])  # before the step, after the base task's, after it
        assert len(measured_on) == 1
        assert predicted_from not in measured_on


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_watching_changes_nothing(tmp_path, tokenizer, monkeypatch, dropout):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")  # an arm that draws no feedback of its own
    config = tmp_path / "learner/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": dropout}))
    run_recipe(recipe)
    groups, _ = load_checkpoint(checkpoints(recipe.directory / "checkpoints")[-1])
    seen = {}
    before = module.OneStepProbe._before
    monkeypatch.setattr(
        module.OneStepProbe, "_before", lambda self: seen.update(learner=self.parts.learner) or before(self)
    )
    probe(recipe, 6)
    for name, theta in seen["learner"].named_parameters():
        assert torch.equal(theta, groups["learner"][name]), name


@pytest.mark.parametrize("command", ["probe", "profile"])
@pytest.mark.parametrize("arm", ["sft", "grpo-feedback"])
def test_an_arm_without_a_task_is_refused_before_anything_is_loaded(tmp_path, tokenizer, capsys, command, arm):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    words = ["--steps", "4", f"arm={arm}", "learner.name=./nowhere"]
    assert main([command, str(tmp_path / "recipe.yaml"), *words]) == 2
    assert f"arm={arm} has a train" in capsys.readouterr().err


def test_the_command_writes_figures_and_a_picture(tmp_path, tokenizer, capsys):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    assert main(["probe", str(tmp_path / "recipe.yaml"), "--steps", "6", *V]) == 0
    assert "gain over the base task  r = " in capsys.readouterr().out
    saved = json.loads((tmp_path / "runs/tiny/probe.json").read_text())
    assert saved["arm"] == "v"
    for name, (*keys, _) in PREDICTIONS.items():
        assert agreement(saved["steps"], *keys) == saved[name]
    assert (tmp_path / "runs/tiny/probe.png").stat().st_size > 1000
