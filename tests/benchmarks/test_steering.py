"""The steering benchmark: roles that share nothing, streams that are what their conditions say, figures that add up."""

from __future__ import annotations

import argparse
import itertools
import re

import pytest

from benchmarks.steering import __main__ as steering
from benchmarks.steering.data import SIZES, stream_of, templates
from vpretrain.compare.results import START
from vpretrain.language.data.source import open_source


def texts(condition, root, count=200):
    (on_topic, *others) = stream_of(condition, root)
    from vpretrain.language.config import SourceConfig

    source = open_source(SourceConfig.model_validate(on_topic))
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


def test_a_summary_has_the_promised_form_and_reads_times_off_the_curves(root, monkeypatch):
    monkeypatch.setattr(steering, "_ROOT", root)
    options = argparse.Namespace(quick=False, validation=False, seen=False, minutes=0.5, settings=[])
    recipe = steering.recipe_of("clean", root, options)

    def run(arm, seed, nll):
        return {
            "arm": arm, "seed": seed, "answer_nll": nll, "answer_nll_low": nll - 1, "answer_nll_high": nll + 1,
            "retention_nll": 2.0, "steps": 9, "seconds": 30.0, "mean_alpha": 0.1,
        }  # fmt: skip

    arms = {
        arm: run(arm, 0, nll) | {"runs": [run(arm, s, nll) for s in (0, 1)]}
        for arm, nll in (("one-hot", 3.0), ("v", 2.0))
    }
    results = {
        "arms": {START: run("one-hot", 0, 4.0), **arms},
        "seeds": [0, 1],
        "differences": {"nll": {
            START: {"one-hot": {"mean": 1.0}}, "one-hot": {}, "v": {START: {"mean": -2.0}, "one-hot": {"mean": -1.0}},
        }},
        "matched": {"tokens": {"at": 5, "nll": {"differences": {"v": {"one-hot": {"mean": -0.5}}}}}},
    }  # fmt: skip
    found = steering.summary(recipe, results)
    assert found["seeds"] == 2
    assert found["arms"]["v"]["target_nll"] == {"mean": 2.0, "low": 1.0, "high": 3.0}
    assert found["arms"]["v"]["minus_one_hot"] == {"mean": -1.0}
    assert found["arms"]["v"]["retention_nll"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})
    # From 4.0 to 2.0 in 30 seconds; one-hot ends at 3.0.
    assert found["arms"]["v"]["seconds_to_one_hot"] == {"mean": pytest.approx(15.0), "reached": 2, "of": 2}
    assert found["arms"]["one-hot"]["seconds_to_one_hot"]["mean"] == pytest.approx(30.0)
    assert found["v_minus"] == {"one-hot": {"mean": -1.0}}
    assert found["after_equal_tokens"] == {"tokens": 5, "v_minus": {"one-hot": {"mean": -0.5}}}
    del results["matched"]
    assert "after_equal_tokens" not in steering.summary(recipe, results)
