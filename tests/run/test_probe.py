"""The one-step probe: predictions are first-order exact, and watching changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from worlds import recipe_data, sums, tiny_recipe, vision_recipe, write_jsonl

from vpretrain.cli.parser import main
from vpretrain.errors import UserError
from vpretrain.inspection import probe as module
from vpretrain.inspection.probe import PREDICTIONS, agreement, probe
from vpretrain.language.assemble import load_learner, subset_of
from vpretrain.language.data.feedback import LanguageFeedback
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
    assert results["gain"] == results["seen"] == results["value"] == {"pearson_r": None, "slope": None}


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


@pytest.mark.parametrize("metric", ["adamw", "identity"])
def test_the_value_as_seen_is_what_the_subset_predicts_from_the_same_batch(tmp_path, tokenizer, monkeypatch, metric):
    draw, kept = LanguageFeedback.next, []
    monkeypatch.setattr(LanguageFeedback, "next", lambda self: kept[0] if kept else kept.append(draw(self)) or kept[0])
    value = {"align": "dot", "metric": metric, "every_steps": 1, "strength": 1.0}
    first, *steps = probe(tiny_recipe(tmp_path, tokenizer, arm="v", value=value), 4)["steps"]
    assert (first["seen"] is None) == (metric == "adamw")  # which has no metric before the first step
    for step in steps:
        assert step["seen"] == pytest.approx(step["predicted_subset"], rel=1e-4)


def test_the_value_is_the_learning_rate_times_the_product_of_both_gradients(tmp_path, tokenizer, monkeypatch):
    found, before = [], module.OneStepProbe._before

    def recorded(self):
        before(self)
        p, S = self.optimizer.parameters, self.subset
        found.append(self.optimizer.learning_rate() * sum((self._g_down[n] * p[n].grad).sum().item() for n in S))

    monkeypatch.setattr(module.OneStepProbe, "_before", recorded)
    draw, kept = LanguageFeedback.next, []
    monkeypatch.setattr(LanguageFeedback, "next", lambda self: kept[0] if kept else kept.append(draw(self)) or kept[0])
    value = {"align": "dot", "metric": "identity", "every_steps": 1}
    results = probe(tiny_recipe(tmp_path, tokenizer, arm="v-paper", value=value), 4)
    assert [step["value"] for step in results["steps"]] == pytest.approx(found, rel=1e-4)
    assert results["value"]["pearson_r"] is not None


@pytest.fixture
def two_domains(tmp_path, tokenizer):
    """A recipe with feedback of two domains, in an arm that draws none of its own."""
    source = recipe_data(tmp_path, tokenizer)["feedback"]["sources"][0]
    more = {"path": write_jsonl(tmp_path / "more.jsonl", sums(12, 5)), "domain": "b"}
    return tiny_recipe(
        tmp_path, tokenizer, arm="one-hot", feedback={"sources": [source | {"domain": "a"}, source | more]}
    )


@pytest.fixture
def told(monkeypatch):
    """Sets the domains of each draw, as a verifier's feedback has them."""

    def tell(*domains):
        draw, following = LanguageFeedback.next, iter(domains)

        def some(self):
            drawn = draw(self)
            return {domain: drawn[domain] for domain in next(following)}

        monkeypatch.setattr(LanguageFeedback, "next", some)

    return tell


def test_only_domains_of_both_draws_count_and_a_step_without_any_is_skipped(two_domains, told, monkeypatch):
    told("ab", "", "ab", "b", "a", "b", "ab", "ab")
    read: dict[bool, list] = {True: [], False: []}
    weighted = module.OneStepProbe._weighted

    def recorded(self, feedback, parameters):
        read[torch.is_grad_enabled()].append("".join(feedback))
        return weighted(self, feedback, parameters)

    monkeypatch.setattr(module.OneStepProbe, "_weighted", recorded)
    results = probe(two_domains, 4)
    assert [step["step"] for step in results["steps"]] == [1, 3]
    assert results["skipped"] == 2
    assert read == {True: ["b", "ab"], False: ["b"] * 3 + ["ab"] * 3}


def test_steps_that_were_all_skipped_are_an_error(two_domains, told):
    told(*[""] * 8)
    with pytest.raises(UserError, match="no gradient of the reward"):
        probe(two_domains, 4)
    assert not (two_domains.directory / "probe.json").exists()


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
