"""Comparisons over seeds and rounds: what is run, what is matched, and intervals over seeds and problems."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from worlds import tiny_recipe

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.compare.compare import compare
from vpretrain.compare.entry import parse_entry, split_entries
from vpretrain.compare.results import _read_off, over_seeds
from vpretrain.compare.statistics import bootstrap_interval, paired_difference
from vpretrain.compare.tables import draw_curves, remarks, table
from vpretrain.errors import Paused
from vpretrain.files import read_lines
from vpretrain.language.arms import ARMS
from vpretrain.modality import MODALITIES
from vpretrain.recipe import load_recipe, save_recipe
from vpretrain.report.collect import collect
from vpretrain.run import run_recipe
from vpretrain.run.checkpoint import load_checkpoint


def final(directory):
    (checkpoint,) = sorted((directory / "checkpoints").glob("step-*"))[-1:]
    groups, state = load_checkpoint(checkpoint)
    state["budget"].pop("seconds")
    return groups, state


def assert_equal(one, other):
    assert one[1] == other[1]
    for name, tensors in one[0].items():
        assert all(torch.equal(tensor, other[0][name][key]) for key, tensor in tensors.items()), name


def test_evaluations_along_the_run_change_nothing_and_are_kept(tmp_path, tokenizer):
    plain = tiny_recipe(tmp_path, tokenizer, name="plain")
    run_recipe(plain)
    recipe = tiny_recipe(tmp_path, tokenizer, name="scored")
    scored = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"points": 3})})
    with pytest.raises(Paused, match="paused at 50% of the budget"):
        run_recipe(scored, until=0.5)
    result = run_recipe(scored, resume=True)
    assert_equal(final(plain.directory), final(scored.directory))
    lines = read_lines(scored.directory / "scores.jsonl")
    assert [line["step"] for line in lines] == [1, 3]  # after 2 and 4 of 6 steps; the last is the result
    assert lines[0]["tokens"] < lines[1]["tokens"] < result["tokens"]
    assert all(len(line["problems"]) == 6 for line in lines)


def test_arms_take_turns_over_seeds_and_end_where_they_would_alone(tmp_path, tokenizer, in_this_process):
    recipe = tiny_recipe(tmp_path, tokenizer, evaluation=_with_points(tmp_path, tokenizer, 2))
    results = compare(recipe, ["one-hot", "v", "self-distillation"], seeds=[0, 1], rounds=2)
    ran = [[word for word in command if word.startswith(("name=", "--until"))] for command in in_this_process]
    turn = ["step-0", "one-hot.0", "v.0", "self-distillation.0", "v.1", "self-distillation.1", "one-hot.1"]
    turn = [f"name={name}" for name in turn]
    assert ran == [["--until=0.5", n] for n in turn] + [[n] for n in turn[1:]]
    alone = tiny_recipe(tmp_path, tokenizer, name="alone", arm="v", seed=1)
    run_recipe(alone)
    assert_equal(final(alone.directory), final(recipe.directory / "v.1"))

    arms = results["arms"]
    assert list(arms) == ["step-0", "one-hot", "v", "self-distillation"]
    assert [run["seed"] for run in arms["v"]["runs"]] == [0, 1]
    assert arms["v"]["answer_nll"] == pytest.approx(sum(run["answer_nll"] for run in arms["v"]["runs"]) / 2)
    assert arms["v"]["answer_nll_low"] <= arms["v"]["answer_nll"] <= arms["v"]["answer_nll_high"]
    differences = results["differences"]["nll"]
    assert {a: set(others) for a, others in differences.items()} == {a: set(arms) - {a} for a in arms}
    assert differences["v"]["one-hot"]["mean"] == pytest.approx(arms["v"]["answer_nll"] - arms["one-hot"]["answer_nll"])
    assert differences["v"]["one-hot"]["mean"] == pytest.approx(-differences["one-hot"]["v"]["mean"])
    matched = results["matched"]
    assert set(matched) == {"seconds", "tokens"}
    assert matched["tokens"]["at"] == min(run["tokens"] for arm in arms.values() for run in arm.get("runs", []))
    assert matched["tokens"]["nll"]["arms"]["v"] == pytest.approx(arms["v"]["answer_nll"], abs=0.05)

    assert [column.header for column in table(results, recipe).columns][:2] == ["arm", "answer NLL [95 %]"]
    told = "\n".join(remarks(results, recipe))
    assert "v minus self-distillation" in told
    assert "paired over problems and 2 seeds" in told
    assert "tokens, v minus one-hot" in told
    assert draw_curves(recipe, results).stat().st_size > 1000


@pytest.mark.usefixtures("in_this_process")
def test_arms_whose_rate_falls_are_not_read_off_along_the_way(tmp_path, tokenizer):
    recipe = tiny_recipe(
        tmp_path,
        tokenizer,
        evaluation=_with_points(tmp_path, tokenizer, 2),
        optimizer={"lr": 1e-3, "schedule": "linear"},
    )
    assert "matched" not in compare(recipe, ["one-hot"])


@pytest.mark.parametrize("label", ["w:value.strength=1", "v:value.strength=2", "v:value.alline=dot", "v:strength"])
def test_wrong_settings_of_an_arm_are_refused_before_any_run(tmp_path, tokenizer, in_this_process, label):
    with pytest.raises(UserError, match=r"unknown|strength|override"):
        compare(tiny_recipe(tmp_path, tokenizer), ["one-hot", label])
    assert not in_this_process
    assert not (tmp_path / "runs").exists()


def _with_points(root, tokenizer, points):
    return tiny_recipe(root, tokenizer).evaluation.model_dump() | {"points": points}


def test_a_curve_is_read_off_between_its_evaluations():
    curve = [{"tokens": t, "cases": [{"nll": n}, {"nll": 2 * n}]} for t, n in ((0, 4.0), (100, 2.0), (300, 1.0))]
    assert _read_off(curve, "tokens", 50, "cases", "nll") == [3.0, 6.0]
    assert _read_off(curve, "tokens", 200, "cases", "nll") == [1.5, 3.0]
    assert _read_off(curve, "tokens", 300, "cases", "nll") == [1.0, 2.0]


def test_a_paused_run_says_how_to_go_on(tmp_path, tokenizer, capsys):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    assert main(["run", str(tmp_path / "recipe.yaml"), "--until", "0.4"]) == 75
    assert "paused at 40% of the budget" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "recipe.yaml"), "--resume"]) == 0


def test_pass_at_k_is_averaged_over_seeds_and_shown_at_its_largest_k():
    metrics = MODALITIES["language"].metrics
    runs = [
        {"arm": "v", "pass_at_k": {"1": p, "8": 3 * p, "16": 4 * p}, "problems": [{"nll": 1.0}]} for p in (0.1, 0.2)
    ]
    summary = over_seeds(runs, metrics)
    assert summary["pass_at_k"] == pytest.approx({"1": 0.15, "8": 0.45, "16": 0.6})
    assert metrics.columns["Pass@k"](summary) == "60.0% (k = 16)"
    assert metrics.columns["Pass@k"]({}) == "-"


def test_unknown_arms_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match="unknown arm two-hot: choose from v, one-hot"):
        compare(tiny_recipe(tmp_path, tokenizer), ["two-hot"])


def test_an_arm_may_have_settings_of_its_own(tmp_path, tokenizer, in_this_process, monkeypatch):
    def follows_v(v):
        return [f"control.alpha={v['seed'] / 4 + 0.25}", "control.keep=0.25"]

    monkeypatch.setitem(ARMS, "self-distillation", replace(ARMS["self-distillation"], follows_v=follows_v))
    recipe = tiny_recipe(tmp_path, tokenizer)
    dot = "v:value.align=dot:value.strength=1"
    arms = ["one-hot", dot, "self-distillation:control.keep=0.75", "v:value.strength=1:value.align=dot"]
    results = compare(recipe, arms, seeds=[0, 1])
    ran = [next(word for word in command if word.startswith("name=")) for command in in_this_process]
    own = ["v-value.align-dot-value.strength-1", "self-distillation-control.keep-0.75"]
    members = ["step-0", "one-hot.0", f"{own[0]}.0", f"{own[0]}.1", "one-hot.1", f"{own[1]}.0", f"{own[1]}.1"]
    assert ran == [f"name={member}" for member in members]
    assert list(results["arms"]) == ["step-0", *arms[:3]]
    assert results["arms"][dot]["arm"] == "v"
    assert set(results["differences"]["nll"][dot]) == {"step-0", "one-hot", arms[2]}

    saved = load_recipe(recipe.directory / members[3] / "recipe.yaml")
    assert (saved.arm, saved.seed, saved.value.align, saved.value.strength) == ("v", 1, "dot", 1)
    assert load_recipe(recipe.directory / "one-hot.1/recipe.yaml").value == recipe.value
    # What is set to match V follows the only V there is, and keeps its own settings.
    after = load_recipe(recipe.directory / members[6] / "recipe.yaml").control
    assert (after.alpha, after.keep) == (0.5, 0.75)

    assert dot in list(table(results, recipe).columns[0].cells)
    assert f"{dot} minus one-hot" in "\n".join(remarks(results, recipe))
    assert draw_curves(recipe, results).stat().st_size > 1000
    study = collect(recipe.directory)
    assert {arm: len(runs) for arm, runs in study.runs.items()} == {"step-0": 1} | dict.fromkeys(arms[:3], 2)
    card = (recipe.directory / members[3] / "model/README.md").read_text()
    assert "All arms of the comparison" in card


def test_names_of_directories_tell_entries_apart():
    plain = {
        "v": "v",
        "v:value.subset=last-1": "v-value.subset-last-1",
        "one-hot:optimizer.lr=1e-5:seed=1": "one-hot-optimizer.lr-1e-5-seed-1",
    }
    assert {text: parse_entry(text).directory for text in plain} == plain
    others = [
        "v:optimizer.lr=1e-5", "v:optimizer.lr=1e+5", "v:value.subset=name:a/b", "v:value.subset=name:a.b",
        f"v:value.subset=name:{'x' * 300}", f"v:value.subset=name:{'x' * 301}", "v:optimizer.betas=[0.9, 0.95]",
    ]  # fmt: skip
    names = [parse_entry(text).directory for text in others]
    assert len(set(names)) == len(others)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and len(name) < 120 for name in names)
    assert parse_entry("v:value.subset=name:a:value.align=dot").settings == ("value.subset=name:a", "value.align=dot")
    assert split_entries("one-hot,v:optimizer.betas=[0.9,0.95],v") == ["one-hot", "v:optimizer.betas=[0.9,0.95]", "v"]


def test_an_interval_over_seeds_and_cases_counts_both():
    torch.manual_seed(0)
    cases, seeds = torch.randn(200), torch.randn(8, 1)
    narrow = bootstrap_interval((0.1 * cases).tolist())
    assert narrow == bootstrap_interval([(0.1 * cases).tolist()])  # a single seed adds nothing
    low, high = bootstrap_interval((seeds + 0.1 * cases).tolist())
    assert high - low > 0.5 * float(seeds.std()) > 5 * (narrow[1] - narrow[0]) / 4
    difference = paired_difference([[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [2.0, 3.0]])
    assert difference == {"mean": 1.0, "low": 1.0, "high": 1.0}
