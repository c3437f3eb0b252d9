"""A benchmark goes on from the recorded results of its finished runs."""

from __future__ import annotations

import json

import pytest

from benchmarks.sittings import record, restore
from vpretrain.errors import UserError


@pytest.fixture
def group(tmp_path):
    directory = tmp_path / "here" / "1024-pairs"
    for run, nll in (("one-hot.0", 1.25), ("v.0", 1.125)):
        (directory / run).mkdir(parents=True)
        (directory / run / "result.json").write_text(json.dumps({"answer_nll": nll}), encoding="utf-8")
    (directory / "v.0" / "scores.jsonl").write_text('{"step": 5}\n', encoding="utf-8")
    (directory / "v.1").mkdir()  # not finished
    (directory / "recipe.yaml").write_text("seed: 0", encoding="utf-8")
    return directory


def recorded(group, elsewhere, recipe):
    """Record a group, and restore it into another directory whose recipe is this text."""
    record([group], group.parent / "runs.jsonl")
    other = elsewhere / group.name
    other.mkdir(parents=True)
    (other / "recipe.yaml").write_text(recipe, encoding="utf-8")
    restore(group.parent / "runs.jsonl", other)
    return other


def test_recorded_results_are_restored_on_another_machine(group, tmp_path):
    other = recorded(group, tmp_path / "there", "seed: 0")
    found = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in other.glob("*/result.json")}
    assert (other / "v.0" / "scores.jsonl").read_text(encoding="utf-8") == '{"step": 5}\n'
    assert found == {"one-hot.0": {"answer_nll": 1.25}, "v.0": {"answer_nll": 1.125}}


def test_results_of_another_recipe_are_refused(group, tmp_path):
    with pytest.raises(UserError, match="another recipe of 1024-pairs"):
        recorded(group, tmp_path / "there", "seed: 1")


def test_results_of_other_groups_stay_where_they_are(group, tmp_path):
    record([group], group.parent / "runs.jsonl")
    (tmp_path / "16-pairs").mkdir()
    restore(group.parent / "runs.jsonl", tmp_path / "16-pairs")
    assert list((tmp_path / "16-pairs").iterdir()) == []
