"""Paths of several trainings: what is run from what, what is charged, what is told."""

from __future__ import annotations

import json

import pytest
from worlds import tiny_recipe

from vpretrain.cli.parser import main
from vpretrain.compare.posttrain import posttrain
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe, save_recipe


def test_paths_share_first_stages_and_pay_for_all_of_theirs(tmp_path, tokenizer, capsys, in_this_process):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 4}, direct={"problems": 1, "group": 2})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    paths = ["v", "v+sft", "v+grpo"]
    command = [
        "posttrain",
        str(tmp_path / "recipe.yaml"),
        "--seeds",
        "0,1",
        "--paths",
        ",".join(paths),
        "evaluation.points=2",
    ]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "minus v" in printed
    directory = tmp_path / "runs/tiny-posttrain"
    results = json.loads((directory / "posttrain.json").read_text())
    assert list(results["paths"]) == paths
    runs = [next(word for word in command if word.startswith("name=")) for command in in_this_process]
    assert len(runs) == len(set(runs)) == 1 + 2 * 4  # step-0; by seed: v, half of v, then sft, then grpo
    second = load_recipe(directory / "v_sft.2of2.1" / "recipe.yaml")
    assert second.learner.name == str(directory / "v.1of2.1")
    assert (second.budget.steps, second.arm, second.seed) == (2, "sft", 1)
    for found in results["paths"].values():
        assert [run["steps"] for run in found["end"]["runs"]] in ([4, 4], [2, 2])
        for curve in found["curve"]:
            assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
            assert curve[-1]["ends"]
    whole, half = (results["paths"][path] for path in ("v", "v+sft"))
    assert whole["curve"][0][0] == half["curve"][0][0]  # the untouched learner
    assert sum(point["ends"] for point in half["curve"][0]) == 2
    stages = [f"{stage}.{seed}" for stage in ("v.1of2", "v_sft.2of2") for seed in (0, 1)]
    spent = sum(json.loads((directory / name / "result.json").read_text())["seconds"] for name in stages)
    assert half["seconds"] == pytest.approx(spent / 2)
    assert half["minus"]["v"]["low"] <= half["minus"]["v"]["mean"] <= half["minus"]["v"]["high"]
    assert (directory / "posttrain.png").stat().st_size > 1000
    in_this_process.clear()
    assert main([*command, "--resume"]) == 0
    assert in_this_process == []


def test_unknown_arms_are_refused_before_the_long_work(tmp_path, tokenizer):
    with pytest.raises(UserError, match="unknown arm dpo"):
        posttrain(tiny_recipe(tmp_path, tokenizer), ["v+dpo"])
    with pytest.raises(UserError, match="'dto' is unknown: choose from 'dot'"):
        posttrain(tiny_recipe(tmp_path, tokenizer), ["one-hot+v:value.align=dto"])
    assert not (tmp_path / "runs").exists()


def test_a_stage_may_have_settings_of_its_own(tmp_path, tokenizer, in_this_process):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 2})
    path = "v:value.align=dot+one-hot"
    results = posttrain(recipe, [path])
    assert list(results["paths"]) == [path]
    first = load_recipe(recipe.directory / "v-value.align-dot.1of2.0/recipe.yaml")
    assert (first.value.align, first.budget.steps) == ("dot", 1)
    second = load_recipe(recipe.directory / "v-value.align-dot_one-hot.2of2.0/recipe.yaml")
    assert (second.arm, second.value.align) == ("one-hot", recipe.value.align)
