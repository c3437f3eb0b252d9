"""The steering benchmark: roles that share nothing, streams that are what their conditions say, figures that add up."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import pytest
from worlds import write_jsonl

from benchmarks.comparison import variant
from benchmarks.steering import __main__ as steering
from benchmarks.steering import ablation, flops
from benchmarks.steering.costs import Costs
from benchmarks.steering.data import SIZES, opened, stream_of, templates
from benchmarks.steering.runs import disturbed
from benchmarks.steering.table import _probe, corrected
from vpretrain.compare.results import START
from vpretrain.errors import UserError


def texts(condition, root, count=200):
    (on_topic, *others) = stream_of(condition, root)
    source = opened(on_topic)
    return [source[i] for i in range(count)], on_topic["weight"], sum(other["weight"] for other in others)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("steering")


def test_no_template_has_two_roles():
    roles = {role: set(templates(role)) for role in SIZES}
    assert {role: len(own) for role, own in roles.items()} == SIZES
    assert all(not a & b for a, b in itertools.combinations(roles.values(), 2))


@pytest.fixture(autouse=True)
def few_problems(monkeypatch):
    from benchmarks.steering import data

    monkeypatch.setattr(data, "PROBLEMS", 200)


def test_conditions_are_what_they_say(root):
    clean, share, rest = texts("clean", root)
    assert share == pytest.approx(0.8)
    assert rest == pytest.approx(0.2)
    assert all(re.search(r"#### \S+$", example.response) for example in clean)

    _, share, rest = texts("off-topic", root)
    assert (share, rest) == (pytest.approx(0.15), pytest.approx(0.85))

    noisy, share, _ = texts("noisy", root)
    assert share == pytest.approx(0.8)
    pairs = [
        (a, b)
        for one, other in zip(clean, noisy, strict=True)
        for a, b in zip(one.response.split(), other.response.split(), strict=True)
    ]
    assert [one.prompt for one in clean] == [one.prompt for one in noisy]
    assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(0.4, abs=0.02)

    shifted, _, _ = texts("format-shift", root)
    assert all("####" not in example.response and "\n" not in example.response for example in shifted)
    assert all(example.response.endswith("</final>") for example in shifted)


def test_validation_and_test_runs_do_not_evaluate_on_the_same_templates(root, monkeypatch):
    monkeypatch.setattr(steering, "_ROOT", root)
    options = argparse.Namespace(quick=False, validation=False, seen=False, minutes=0.5, settings=["threads=1"])
    recipes = [
        steering.recipe_of("clean", root, argparse.Namespace(**vars(options) | {"validation": validation}))
        for validation in (False, True)
    ]
    used = [set(recipe.evaluation.sources[0].options["task_indices"]) for recipe in recipes]
    assert used == [set(templates("test")), set(templates("validation"))]
    assert recipes[0].threads == 1
    assert recipes[0].directory != recipes[1].directory


@pytest.fixture
def compared(root, tmp_path, monkeypatch):
    """Two seeds: in 30 seconds V's NLL falls from 4 to 2, in 9 steps, and one-hot's from 4 to 3, in 12 steps."""
    monkeypatch.setattr(steering, "_ROOT", tmp_path)
    options = argparse.Namespace(quick=False, validation=False, seen=False, minutes=0.5, settings=[])
    recipe = steering.recipe_of("clean", root, options)

    def run(arm, seed, nll, steps):
        found = {
            "arm": arm, "seed": seed, "answer_nll": nll, "answer_nll_low": nll - 1, "answer_nll_high": nll + 1,
            "retention_nll": 2.0 + (arm == "v") / 100, "steps": steps, "seconds": 30.0, "tokens": 10 * steps, "mean_alpha": 0.1,
        }  # fmt: skip
        directory = recipe.directory / (START if arm == START else f"{arm}.{seed}")
        directory.mkdir(parents=True)
        problems = [{"nll": nll - 0.5}, {"nll": nll + 0.5}]
        (directory / "result.json").write_text(json.dumps(found | {"problems": problems}))
        lines = [{"step": i, "tokens": 10 * (i + 1), "alpha": 0.1 if arm == "v" else 0.0} for i in range(steps)]
        write_jsonl(directory / "metrics.jsonl", lines)
        (directory / "scores.jsonl").write_text("")
        return found

    arms = {}
    for arm, nll, steps in (("one-hot", 3.0, 12), ("v", 2.0, 9)):
        own = [run(arm, seed, nll, steps) for seed in (0, 1)]
        arms[arm] = own[0] | {"runs": own}
    results = {
        "arms": {START: run(START, 0, 4.0, 0), **arms},
        "seeds": [0, 1],
        "differences": {"nll": {
            START: {"one-hot": {"mean": 1.0}}, "one-hot": {}, "v": {START: {"mean": -2.0}, "one-hot": {"mean": -1.0}},
        }},
    }  # fmt: skip
    return recipe, results


def test_a_summary_has_the_promised_form(compared):
    found = steering.summary(*compared)
    assert found["seeds"] == 2
    assert found["arms"]["v"]["target_nll"] == {"mean": 2.0, "low": 1.0, "high": 3.0}
    assert found["arms"]["v"]["minus_one_hot"] == {"mean": -1.0}
    assert found["arms"]["v"]["retention_nll"] == pytest.approx({"mean": 2.01, "low": 2.01, "high": 2.01})
    assert found["arms"]["v"]["retention_minus_one_hot"]["mean"] == pytest.approx(0.01)
    assert found["v_minus"] == {"one-hot": {"mean": -1.0}}


def test_differences_are_corrected_over_all_conditions_column_by_column():
    def condition(p):
        minus = {f"{column}minus_one_hot": {"p": p} for column in ("", "tempered_", "retention_")}
        return {"arms": {"one-hot": {}, "v": minus}, "v_minus": {"one-hot": {"p": p}, "uniform": {"p": 0.04}}}

    conditions = {"clean": condition(0.01), "noisy": condition(0.02)}
    found = corrected(conditions)
    v = [found[name]["arms"]["v"] for name in conditions]
    assert [arm["tempered_minus_one_hot"]["p_holm"] for arm in v] == pytest.approx([0.02, 0.02])
    assert [arm["retention_minus_one_hot"]["p_holm"] for arm in v] == pytest.approx([0.02, 0.02])
    # On the target four: V minus one-hot stands in two places, and counts once.
    assert [arm["minus_one_hot"]["p_holm"] for arm in v] == pytest.approx([0.04, 0.06])
    assert [found[name]["v_minus"]["one-hot"]["p_holm"] for name in conditions] == pytest.approx([0.04, 0.06])
    assert found["noisy"]["v_minus"]["uniform"]["p_holm"] == pytest.approx(0.08)
    assert conditions == {"clean": condition(0.01), "noisy": condition(0.02)}  # left as they were


def test_the_probe_is_shown_with_what_the_designer_saw_where_that_was_measured():
    found = {"pearson": 0.9, "slope": 0.8, "pearson_subset": 0.7, "pearson_seen": 0.6, "pearson_gain": None}
    assert _probe(found) == "r 0.900, slope 0.80 (S alone: r 0.700; along the direction in use: r 0.600)"
    assert _probe(found | {"pearson_seen": None}) == "r 0.900, slope 0.80 (S alone: r 0.700)"


def steps_of(**arms):
    """Results of a comparison by the steps of each arm's seeds."""
    runs = {
        arm.replace("_", "-"): {"runs": [{"seed": seed, "steps": made} for seed, made in enumerate(steps)]}
        for arm, steps in arms.items()
    }
    return {"seeds": list(range(len(next(iter(arms.values()))))), "arms": {START: {"seed": 0, "steps": 0}, **runs}}


def test_runs_that_were_slowed_down_are_those_far_below_the_median_of_their_arm(compared):
    recipe, _ = compared
    results = steps_of(one_hot=[100, 84, 100], v=[80, 85, 73], v_paper=[200, 30, 170])
    assert disturbed(recipe, results) == [recipe.directory / name for name in ("one-hot.1", "v-paper.1")]
    assert disturbed(recipe, steps_of(one_hot=[100, 10])) == []


@pytest.mark.parametrize(
    ("steps", "more", "slow"),
    [([100, 86, 100], [], None), ([100, 84, 100], [], None), ([100, 84, 100], ["--keep-slow"], ["one-hot.1"])],
)
def test_no_results_are_written_while_a_run_is_slow_unless_it_is_kept(root, monkeypatch, capsys, steps, more, slow):
    written = []
    monkeypatch.setattr(steering, "_ROOT", root)
    monkeypatch.setattr(steering, "pretrained", lambda root, **_: root)
    monkeypatch.setattr(steering, "compare", lambda *_, **__: SimpleNamespace(figures=steps_of(one_hot=steps)))
    monkeypatch.setattr(steering, "summary", lambda recipe, results: {"arms": {}, "v_minus": {}})
    for name in ("show", "draw_curves"):
        monkeypatch.setattr(steering, name, lambda *_: None)
    monkeypatch.setattr(steering, "_probed", lambda recipe: {})
    monkeypatch.setattr(steering, "write_report", lambda *found: written.append(found))
    arguments = ["--conditions=clean", "--arms=one-hot", "--seeds=3", *more]
    if 84 in steps and not more:
        with pytest.raises(UserError, match=r"no results are written, as there are slow runs \(clean\)"):
            steering.main(arguments)
        assert f"rm -r {root}/clean-0.35min/one-hot.1; then this command" in capsys.readouterr().out
        assert written == []
    else:
        steering.main(arguments)
        ((_, report, *_),) = written
        assert report["conditions"]["clean"].get("slow") == slow


def test_times_are_read_off_the_curves(compared):
    arms = steering.summary(*compared)["arms"]
    # From 4.0 to 2.0 in 30 seconds; one-hot ends at 3.0.
    assert arms["v"]["seconds_to_one_hot"] == {"mean": pytest.approx(15.0), "reached": 2, "of": 2}
    assert arms["one-hot"]["seconds_to_one_hot"]["mean"] == pytest.approx(30.0)


def test_flops_are_those_of_the_steps_that_a_run_made():
    costs = Costs(step=100.0, task=10.0, update=7.0, agreement=5.0, gain=3.0)
    lines = [
        {"tokens": 1, "alpha": 0.0},
        {"tokens": 2, "alpha": 0.0, "g_down_norm": 0.5, "strength": 1.0},  # the first judgement takes the tilt
        {"tokens": 3, "alpha": 0.1},
        {"tokens": 4, "alpha": 0.1, "g_down_norm": 0.5, "strength": 0.0},  # the second measures its gain, and refuses
        {"tokens": 5, "alpha": 0.0, "g_down_norm": 0.5, "strength": 0.0},
    ]
    spent = [100.0, 212.0, 322.0, 447.0, 559.0]
    assert [costs.spent(lines[:n]) for n in (1, 2, 3, 4, 5)] == spent
    always = dataclasses.replace(costs, always=True)
    assert always.spent(lines[:1]) == 110.0


def test_arms_make_as_many_steps_as_the_flops_of_one_hot_pay_for():
    costs = Costs(step=100.0, task=10.0, update=80.0, agreement=5.0, gain=30.0)
    # Three agreements and two gains cost 75; with an eighth of an update a tilted step costs 120.
    assert costs.affordable(75.0 + 12 * 120.0, every_steps=8) == 12
    assert costs.affordable(75.0 + 12 * 120.0 - 1, every_steps=8) == 11


def test_equal_flops_are_compared_problem_by_problem(compared, tmp_path, monkeypatch):
    recipe, _ = compared
    asked = []

    def result_of(recipe, name, settings):
        asked.append((name, settings))
        directory = tmp_path / name
        directory.mkdir()
        arm, seed = name.split("-")[0] == "v", int(name[-1])
        write_jsonl(directory / "metrics.jsonl", [{"alpha": 0.0, "tokens": 1}])
        nll = [2.0 + seed - arm, 3.0 + seed - arm]
        return {
            "answer_nll": sum(nll) / 2,
            "answer_top_1": 0.25 + arm / 4,
            "retention_nll": 2.0 + arm / 10,
            "mean_alpha": 0.1,
            "problems": [{"nll": n, "nll_tempered": n - arm} for n in nll],
        }

    monkeypatch.setattr(flops, "result_of", result_of)
    recipe = recipe.model_copy(update={"output": str(tmp_path)})
    found = flops.summary(recipe, ["one-hot", "v"], range(2), 300)
    assert found["v"]["minus_one_hot"]["mean"] == pytest.approx(-1.0)
    assert found["v"]["tempered_minus_one_hot"]["mean"] == pytest.approx(-2.0)
    assert found["v"]["top_1"] == 0.5
    assert found["v"]["retention_minus_one_hot"]["mean"] == pytest.approx(0.1)
    assert found["one-hot"]["steps"] == 300
    # A few per cent fewer: the tangent of every step, a meta update at every eighth, and the judgements.
    steps = found["v"]["steps"]
    assert 0.9 * 300 < steps < 0.98 * 300
    assert found["one-hot"]["flops"] == pytest.approx(1 / 300)
    assert asked[3] == (f"v-{steps}.1", ["arm=v", "seed=1", "budget.minutes=null", f"budget.steps={steps}"])
    assert asked[5] == ("v-300.1", ["arm=v", "seed=1", "budget.minutes=null", "budget.steps=300"])
    assert found["v, equal tokens"]["steps"] == 300
    assert flops.markdown({"conditions": {"clean": found}}).count("| clean | ") == 3


def test_the_ablation_compares_every_variant_on_validation_templates(root, tmp_path, monkeypatch):
    recipes = []

    def result_of(recipe, name, settings):
        recipes.append(recipe)
        figures = dict.fromkeys(("answer_nll", "retention_nll", "seconds", "mean_alpha"), 1.0)
        return figures | {"problems": [{"nll": 1.0}, {"nll": 2.0}]}

    monkeypatch.setattr(steering, "_ROOT", root)
    monkeypatch.setattr(ablation, "_ROOT", tmp_path)
    monkeypatch.setattr(ablation, "pretrained", lambda root: root)
    monkeypatch.setattr(ablation, "result_of", result_of)
    ablation.main(["--conditions=clean"])
    found = json.loads((tmp_path / "ablation/results.json").read_text())
    assert list(found["conditions"]["clean"]) == list(ablation.VARIANTS)
    compared = {(variant, key) for variant, of in found["conditions"]["clean"].items() for key in of if "minus" in key}
    corrected = {(variant, key) for variant, key in compared if "p_holm" in found["conditions"]["clean"][variant][key]}
    assert compared - corrected == {("v", "minus_v"), ("one-hot", "minus_one-hot")}
    assert len(recipes) == 2 * len(ablation.VARIANTS)
    used = recipes[0].evaluation.sources[0].options["task_indices"]
    assert set(used) == set(templates("validation"))


def test_the_cost_of_v_is_a_few_per_cent_of_a_step_at_the_shapes_of_a_real_learner(compared):
    recipe, _ = compared
    one_hot, v, weights = (Costs.of(recipe, arm) for arm in ("one-hot", "v", "token-weights"))
    assert one_hot == Costs(v.step)
    assert 0 < v.task < 0.03 * v.step
    # Two feedback rows to the four of a step: forward, and backward down to the last block.
    assert 0.15 * v.step < v.update < 0.3 * v.step
    assert (weights.task, weights.update, weights.always) == (v.task, v.update, True)


def test_names_of_variants_are_names_of_directories():
    def named(*settings):
        return variant(SimpleNamespace(quick=False, minutes=0.5, validation=True, settings=settings))

    assert named("a.b=c/d") == "0.5min-validation-a.b-c-d"
    assert named("feedback.meta=[{scenes: 128, seed: 3}]") == "0.5min-validation-feedback.meta---scenes--128--seed--3--"
    long = [named(*(f"evaluation.problems={n}{n}" for n in range(first, first + 20))) for first in (0, 1)]
    assert len(set(long)) == 2
    assert all(len(name) < 170 for name in long)
