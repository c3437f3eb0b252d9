"""A benchmark goes on from the recorded results of its finished runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from worlds import write_jsonl

from benchmarks.command import whole
from benchmarks.comparison import comparison_options
from benchmarks.sittings import Sittings, add_option
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.recipe import load_recipe, save_recipe


def group_of(root, name="1024-pairs", *changes):
    return load_recipe("recipes/quickstart.yaml", [f"output={root}", f"name={name}", *changes])


def finish(recipe, arms, *, seeds, **kwargs):
    """Stand in for `compare`: finish every run that is not finished yet, and count those."""
    recipe.directory.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, recipe.directory / "recipe.yaml")
    made = []
    for run in (f"{arm}.{seed}" for seed in seeds for arm in arms):
        result = recipe.directory / run / "result.json"
        if not result.exists():
            made.append(run)
            result.parent.mkdir(exist_ok=True)
            result.write_text(json.dumps({"run": run}), encoding="utf-8")
            (result.parent / "scores.jsonl").write_text('{"step": 5}\n', encoding="utf-8")
    return SimpleNamespace(figures={"made": made})


def sit(file, recipe, arms, seeds, *, add):
    return Sittings(file, add=add).compare(recipe, arms, seeds, run=finish)["made"]


def test_a_second_machine_makes_only_what_is_missing(tmp_path):
    file = tmp_path / "runs.jsonl"
    here, there = (group_of(tmp_path / place) for place in ("here", "there"))
    assert sit(file, here, ["one-hot", "v"], [0, 1], add=False) == ["one-hot.0", "v.0", "one-hot.1", "v.1"]
    assert sit(file, there, ["one-hot", "v"], [0, 1, 2], add=True) == ["one-hot.2", "v.2"]
    assert (there.directory / "v.0/scores.jsonl").read_text(encoding="utf-8") == '{"step": 5}\n'
    assert [line["run"] for line in read_lines(file)[1:]] == [
        f"{arm}.{seed}" for arm in ("one-hot", "v") for seed in range(3)
    ]


def test_the_runs_of_other_groups_stay(tmp_path):
    file = tmp_path / "runs.jsonl"
    sit(file, group_of(tmp_path / "here"), ["v"], [0], add=False)
    sit(file, group_of(tmp_path / "here", "16-pairs"), ["v"], [0], add=False)
    before = [line for line in read_lines(file) if line["group"] == "16-pairs"]
    sit(file, group_of(tmp_path / "there"), ["v"], [0, 1], add=True)
    assert len(before) == 2
    assert [line for line in read_lines(file) if line["group"] == "16-pairs"] == before


def test_recorded_runs_are_not_overwritten_unasked(tmp_path):
    file = tmp_path / "runs.jsonl"
    here = group_of(tmp_path / "here")
    sit(file, here, ["v"], [0], add=False)
    sit(file, here, ["v"], [0, 1], add=False)  # the runs are there: nothing would be lost
    before = file.read_bytes()
    with pytest.raises(UserError, match="holds finished runs: go on from them with ARGS=--add, or delete it"):
        sit(file, group_of(tmp_path / "there"), ["v"], [0], add=False)
    assert file.read_bytes() == before


def test_results_of_another_recipe_are_refused_and_new_settings_have_their_defaults(tmp_path):
    file = tmp_path / "runs.jsonl"
    sit(file, group_of(tmp_path / "here"), ["v"], [0], add=False)
    first, *rest = read_lines(file)
    del first["recipe"]["value"]["divergence"]  # as if the setting were new
    write_jsonl(file, [first, *rest])
    assert sit(file, group_of(tmp_path / "there", "1024-pairs", "threads=1"), ["v"], [0], add=True) == []
    with pytest.raises(UserError, match=r"other settings of 1024-pairs: optimizer\.lr"):
        sit(file, group_of(tmp_path / "third", "1024-pairs", "optimizer.lr=0.125"), ["v"], [0], add=True)


def test_what_is_not_recorded_has_nothing_to_add_to():
    with pytest.raises(UserError, match="only its runs are recorded"):
        Sittings(None, add=True)


@pytest.mark.parametrize(
    ("words", "full", "recorded"),
    [
        ([], True, True),
        (["--add"], True, True),
        (["--seeds=1"], False, True),
        (["--arms=v"], False, True),
        (["--sizes=2"], False, True),
        (["--minutes=1"], False, False),
        (["--quick"], False, False),
        (["--validation"], False, False),
        (["threads=1"], False, False),
    ],
)
def test_only_full_benchmarks_replace_results_and_only_their_runs_are_recorded(tmp_path, words, full, recorded):
    parser = comparison_options("bench-any", None, ["one-hot", "v"], 2, 0.5, sizes=(1, 2))
    add_option(parser)
    options = parser.parse_args(words)
    assert whole(parser, options) == full
    assert (Sittings.of(options, tmp_path / "runs.jsonl", 0.5).file is not None) == recorded
