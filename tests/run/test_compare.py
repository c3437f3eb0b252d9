"""Comparisons over seeds and rounds: what is run, what is matched, and intervals over seeds and problems."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import character_tokenizer, runs_in_this_process
from worlds import tiny_recipe

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.compare.compare import compare
from vpretrain.compare.entry import check_entries, parse_entry, split_entries
from vpretrain.compare.plots import draw_curves
from vpretrain.compare.results import _differences, over_seeds, read_off, values_of
from vpretrain.compare.runs import prepare_group, run_member
from vpretrain.compare.statistics import paired_difference
from vpretrain.compare.tables import remarks, table
from vpretrain.errors import MachineError, Paused
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
    assert lines[0]["tokens"] < lines[1]["tokens"] < result.tokens
    assert all(len(line["problems"]) == 6 for line in lines)


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """Three arms over two seeds in two rounds: where, the recipe, the commands of the runs, and the results."""
    root = tmp_path_factory.mktemp("turns")
    recipe = tiny_recipe(root, character_tokenizer(), evaluation=_with_points(root, character_tokenizer(), 2))
    with runs_in_this_process() as commands:
        results = compare(recipe, ["one-hot", "v", "self-distillation"], seeds=[0, 1], rounds=2)
    return SimpleNamespace(root=root, recipe=recipe, commands=commands, results=results)


def test_arms_take_turns_over_seeds(turns):
    ran = [[word for word in command if word.startswith(("name=", "--until"))] for command in turns.commands]
    turn = ["step-0", "v.0", "self-distillation.0", "one-hot.0", "self-distillation.1", "one-hot.1", "v.1"]
    turn = [f"name={name}" for name in turn]
    assert ran == [["--until=0.5", n] for n in turn] + [[n] for n in turn[1:]]


def test_a_run_in_turns_ends_where_it_would_alone(turns):
    alone = tiny_recipe(turns.root, character_tokenizer(), name="alone", arm="v", seed=1)
    run_recipe(alone)
    assert_equal(final(alone.directory), final(turns.recipe.directory / "v.1"))


def test_the_figures_of_an_arm_are_means_over_its_seeds_with_an_interval(turns):
    arms = turns.results.arms
    assert list(arms) == ["step-0", "one-hot", "v", "self-distillation"]
    assert [run["seed"] for run in arms["v"]["runs"]] == [0, 1]
    assert arms["v"]["answer_nll"] == pytest.approx(sum(run["answer_nll"] for run in arms["v"]["runs"]) / 2)
    assert arms["v"]["answer_nll_low"] <= arms["v"]["answer_nll"] <= arms["v"]["answer_nll_high"]


def test_figures_of_no_single_problem_have_intervals_over_seeds(turns):
    arms, found = turns.results.arms, turns.results.over_seeds["retention NLL"]
    limits = arms["v"]["intervals"]["retention NLL"]
    assert limits["low"] <= arms["v"]["retention_nll"] <= limits["high"]
    expected = arms["v"]["retention_nll"] - arms["one-hot"]["retention_nll"]
    assert found["v"]["one-hot"]["mean"] == pytest.approx(expected)
    assert "p_holm" in found["v"]["one-hot"]
    assert "intervals" not in arms["step-0"]  # it is the same for every seed


def test_every_arm_is_compared_with_every_other(turns):
    arms, differences = turns.results.arms, turns.results.differences["nll"]
    assert {a: set(others) for a, others in differences.items()} == {a: set(arms) - {a} for a in arms}
    assert differences["v"]["one-hot"]["mean"] == pytest.approx(arms["v"]["answer_nll"] - arms["one-hot"]["answer_nll"])
    assert differences["v"]["one-hot"]["mean"] == pytest.approx(-differences["one-hot"]["v"]["mean"])


def test_differences_from_the_untouched_learner_are_corrected_for_their_number(turns):
    arms = ("one-hot", "v", "self-distillation")
    families = [[turns.results.differences[key]] for key in ("nll", "solved")] + [
        list(turns.results.over_seeds.values())
    ]
    for family in families:
        found = [of_arm[arm]["step-0"] for of_arm in family for arm in arms]
        clearest = min(found, key=lambda difference: difference["p"])
        assert clearest["p_holm"] == pytest.approx(min(1.0, len(found) * clearest["p"]))


def test_the_interval_of_b_minus_a_is_that_of_a_minus_b_mirrored():
    a, b = [[1.0, 2.0, 4.0]], [[0.5, 1.0, 1.0]]
    found = _differences({"a": a, "b": b})
    assert found["a"]["b"] == paired_difference(a, b)
    assert found["b"]["a"] == pytest.approx(paired_difference(b, a))
    assert found["a"]["b"]["low"] < 0 < found["a"]["b"]["high"]


def test_arms_are_matched_in_seconds_and_tokens(turns):
    arms, matched = turns.results.arms, turns.results.matched
    assert set(matched) == {"seconds", "tokens"}
    assert matched["tokens"]["at"] == min(run["tokens"] for arm in arms.values() for run in arm.get("runs", []))
    assert matched["tokens"]["nll"]["arms"]["v"] == pytest.approx(arms["v"]["answer_nll"], abs=0.05)


def test_a_comparison_over_seeds_has_a_table_remarks_and_curves(turns):
    results, recipe = turns.results.figures, turns.recipe
    assert [column.header for column in table(results, recipe).columns][:2] == ["arm", "answer NLL [95 %]"]
    told = "\n".join(remarks(results, recipe))
    assert "v minus self-distillation" in told
    assert "paired over problems and 2 seeds" in told
    assert "other seeds" not in told
    one = "\n".join(remarks(results | {"seeds": [0]}, recipe))
    assert "paired over problems of one seed, which says nothing about other seeds" in one
    assert "tokens, v minus self-distillation" in told
    assert "tokens, v minus one-hot" not in told  # v made no meta update: both trained in the same way
    assert "v minus one-hot, on problems that greedy decoding solves (Pass@1): " in told
    assert "v minus self-distillation, on problems" not in told  # it stands beside the main figure


def test_pass_at_1_is_compared_problem_by_problem(turns):
    arms, differences = turns.results.arms, turns.results.differences["solved"]
    assert differences["v"]["one-hot"]["mean"] == pytest.approx(arms["v"]["pass_at_1"] - arms["one-hot"]["pass_at_1"])
    assert "solved" not in turns.results.of


def test_curves_have_pass_at_1_by_seconds_and_tokens(turns, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    assert draw_curves(turns.results.figures, turns.recipe).stat().st_size > 1000
    panels = [(axis.get_title(), axis.get_xlabel()) for axis in figures[0].axes]
    for score in ("answer NLL", "Pass@1"):
        assert [x for title, x in panels if title == score] == ["training seconds", "tokens"]
    drawn = next(axis for axis in figures[0].axes if (axis.get_title(), axis.get_xlabel()) == ("Pass@1", "tokens"))
    assert len(drawn.get_lines()) == 2 * 3  # seeds and arms
    assert drawn.get_lines()[0].get_xydata()[0].tolist() == [0, turns.results.arms["step-0"]["pass_at_1"]]


def test_python_gets_the_content_of_the_file_and_its_table(turns):
    results = turns.results
    saved = json.loads((turns.recipe.directory / "results.json").read_text())
    assert json.loads(json.dumps(results.figures)) == saved
    assert (results.seeds, results.rounds, results.remarks) == ([0, 1], 2, saved["remarks"])
    assert results.by_domain == {}
    lines = repr(results).splitlines()
    assert "tiny: held-out answers after equal steps" in lines[0]
    first = [words[0] for line in lines[1:] if (words := line.split())]
    assert [word for word in first if word == "arm" or word in results.arms] == ["arm", *results.arms]
    html = results._repr_html_()
    assert html.startswith("<table><caption>tiny: held-out answers after equal steps</caption>")
    assert html.count("<tr><td>") == len(results.arms)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("schedule", "of_arm"), [("linear", ""), ("constant", ":optimizer.schedule=linear")])
def test_arms_whose_rate_falls_are_not_read_off_along_the_way(tmp_path, tokenizer, schedule, of_arm):
    recipe = tiny_recipe(
        tmp_path,
        tokenizer,
        evaluation=_with_points(tmp_path, tokenizer, 2),
        optimizer={"lr": 1e-3, "schedule": schedule},
    )
    assert compare(recipe, ["one-hot", f"self-distillation{of_arm}"]).matched == {}


def test_a_finished_run_with_another_seed_is_not_taken_for_the_one_that_is_asked_for(
    tmp_path, tokenizer, in_this_process
):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 1})
    compare(recipe, ["one-hot"], seeds=[3])
    in_this_process.clear()
    with pytest.raises(UserError, match=r"one-hot: --resume with a changed recipe .*\(seed: 3 -> 4\)"):
        compare(recipe, ["one-hot"], seeds=[4], resume=True)
    assert in_this_process == []
    assert compare(recipe, ["one-hot"], seeds=[3], resume=True).seeds == [3]


@pytest.mark.usefixtures("in_this_process")
def test_a_directory_may_be_named_by_a_number(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(tiny_recipe(tmp_path, tokenizer, output=".", name="2026", budget={"steps": 1}), ["one-hot"])
    assert (tmp_path / "2026/one-hot/result.json").exists()


@pytest.mark.parametrize(("code", "error"), [(2, UserError), (74, MachineError)])
def test_a_member_fails_as_its_process_does(tmp_path, code, error):
    with pytest.raises(UserError, match=rf"v failed \(exit code {code}\)") as caught:
        run_member(tmp_path, "v", [], resume=False, start=lambda command: SimpleNamespace(wait=lambda: code))
    assert type(caught.value) is error


def test_an_overwrite_that_is_stopped_leaves_the_recipe_by_which_a_resume_is_checked(tmp_path, tokenizer, monkeypatch):
    recipe = tiny_recipe(tmp_path, tokenizer)
    (recipe.directory / "v").mkdir(parents=True)
    save_recipe(recipe, recipe.directory / "recipe.yaml")

    def stopped(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "iterdir", lambda path: iter([path / "recipe.yaml", path / "v"]))
        patch.setattr("shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare_group(recipe, resume=False, overwrite=True)
    assert (recipe.directory / "recipe.yaml").exists()


@pytest.mark.parametrize("label", ["w:value.strength=1", "v:value.strength=2", "v:value.alline=dot", "v:strength"])
def test_wrong_settings_of_an_arm_are_refused_before_any_run(tmp_path, tokenizer, in_this_process, label):
    with pytest.raises(UserError, match=r"unknown|strength|override"):
        compare(tiny_recipe(tmp_path, tokenizer), ["one-hot", label])
    assert not in_this_process
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("generated", "given", "steps"),
    [(0, {}, [1, 2, 4]), (2, {}, [2]), (0, {"points": 0}, []), (0, {"points": 1}, [])],
)
def test_curves_have_more_than_their_ends_unless_the_recipe_says_otherwise(
    tmp_path, tokenizer, generated, given, steps
):
    recipe = tiny_recipe(tmp_path, tokenizer, evaluation={"pass_at_1_problems": generated, **given})
    results = compare(recipe, ["one-hot"])
    assert [line["step"] for line in read_lines(recipe.directory / "one-hot/scores.jsonl")] == steps
    assert bool(results.matched) == bool(steps)
    assert load_recipe(recipe.directory / "recipe.yaml").evaluation.points == given.get("points", len(steps) + 1)
    assert compare(recipe, ["one-hot"], resume=True).arms == results.arms


def _with_points(root, tokenizer, points):
    return tiny_recipe(root, tokenizer).evaluation.model_dump() | {"points": points}


def test_images_of_one_scene_are_one_case_and_a_problem_asked_twice_is_two():
    images = [{"scene": 7, "miou": 0.2}, {"scene": 7, "miou": 0.6}, {"scene": 9, "miou": 0.5}, {"scene": 9}]
    assert values_of([images], "miou") == [[pytest.approx(0.4), 0.5]]
    problems = [{"key": "a", "nll": 1.0}, {"key": "b", "nll": 2.0}, {"key": "a", "nll": 1.0}]
    assert values_of([problems], "nll") == [[1.0, 2.0, 1.0]]
    assert values_of([[{"nll": 1.0}, {"nll": 2.0}]], "nll") == [[1.0, 2.0]]


def test_a_curve_is_read_off_between_its_evaluations():
    curve = [{"tokens": t, "cases": [{"nll": n}, {"nll": 2 * n}]} for t, n in ((0, 4.0), (100, 2.0), (300, 1.0))]
    assert read_off(curve, "tokens", 50, "cases", "nll") == [3.0, 6.0]
    assert read_off(curve, "tokens", 200, "cases", "nll") == [1.5, 3.0]
    assert read_off(curve, "tokens", 300, "cases", "nll") == [1.0, 2.0]


def test_a_paused_run_prints_its_share_and_can_be_resumed(tmp_path, tokenizer, capsys):
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


def test_a_warning_says_of_how_many_seeds_it_is():
    metrics = MODALITIES["language"].metrics
    runs = [{"arm": "v", "seed": seed, "problems": [{"nll": 1.0}]} for seed in (4, 5, 6)]
    runs[1]["warning"] = "the targets stayed one-hot"
    assert over_seeds(runs, metrics)["warning"] == "1 of 3 seeds, such as 5: the targets stayed one-hot"
    assert "warning" not in over_seeds(runs[::2], metrics)
    assert over_seeds(runs[1:2], metrics)["warning"] == "the targets stayed one-hot"


def test_an_interval_over_seeds_is_student_s_and_stands_in_the_cell():
    language, vision = (MODALITIES[name].metrics for name in ("language", "vision"))
    runs = [{"arm": "v", "retention_nll": x, "problems": [{"nll": 1.0}]} for x in (2.0, 2.2)]
    summary = over_seeds(runs, language)
    half = 12.7062 * 0.1  # t with one degree of freedom, times the standard error
    assert summary["intervals"] == {"retention NLL": pytest.approx({"low": 2.1 - half, "high": 2.1 + half}, abs=1e-4)}
    assert language.cell("retention NLL", summary) == "2.1000 [0.8294, 3.3706]"
    assert language.cell("retention NLL", runs[0]) == "2.0000"
    of_set = [{"arm": "v", "miou": x, "accuracy": x, "retrieval_map": x, "test_images": [{}]} for x in (0.4, 0.5)]
    assert set(over_seeds(of_set, vision)["intervals"]) == {"mIoU", "accuracy", "mAP"}


def test_examples_left_out_are_counted_by_seed_and_not_as_means():
    counts = [{"stream a.jsonl": {"response null": 2}}, {"stream a.jsonl": {"prompt null": 3}}]
    runs = [{"arm": "v", "left_out": found, "problems": [{"nll": 1.0}]} for found in counts]
    summary = over_seeds(runs, MODALITIES["language"].metrics)
    assert "left_out" not in summary
    assert [run["left_out"] for run in summary["runs"]] == counts


def test_unknown_arms_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"unknown arm two-hot: did you mean one-hot\? choose from v, one-hot"):
        compare(tiny_recipe(tmp_path, tokenizer), ["two-hot"])


DOT = "v:value.align=dot:value.strength=1"
ENTRIES = ["one-hot", DOT, "self-distillation:control.keep=0.75", "v:value.strength=1:value.align=dot"]  # a twin last
OWN = ["v-value.align-dot-value.strength-1", "self-distillation-control.keep-0.75"]


@pytest.fixture(scope="module")
def with_settings(tmp_path_factory):
    """Arms with settings of their own over two seeds: the recipe, the commands of the runs, and the results."""

    def follows_v(v):
        return [f"control.alpha={v['seed'] / 4 + 0.25}", "control.keep=0.25"]

    recipe = tiny_recipe(tmp_path_factory.mktemp("settings"), character_tokenizer())
    with runs_in_this_process() as commands, pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARMS, "self-distillation", replace(ARMS["self-distillation"], follows=("v", follows_v)))
        results = compare(recipe, ENTRIES, seeds=[0, 1])
    return SimpleNamespace(recipe=recipe, commands=commands, results=results)


def test_an_entry_with_settings_is_an_arm_of_its_own_and_a_twin_is_not(with_settings):
    ran = [next(word for word in command if word.startswith("name=")) for command in with_settings.commands]
    members = ["step-0", f"{OWN[0]}.0", "one-hot.0", "one-hot.1", f"{OWN[0]}.1", f"{OWN[1]}.0", f"{OWN[1]}.1"]
    assert ran == [f"name={member}" for member in members]
    results = with_settings.results
    assert list(results.arms) == ["step-0", *ENTRIES[:3]]
    assert results.arms[DOT]["arm"] == "v"
    assert set(results.differences["nll"][DOT]) == {"step-0", "one-hot", ENTRIES[2]}


def test_an_arm_that_is_named_twice_is_remarked_on(tmp_path, tokenizer, capsys):
    entries = check_entries(tiny_recipe(tmp_path, tokenizer), ["v", "one-hot", "v"])
    assert [entry.label for entry in entries] == ["v", "one-hot"]
    assert "v is named twice, and runs once" in capsys.readouterr().err


def test_settings_of_an_arm_apply_to_its_runs_alone(with_settings):
    recipe = with_settings.recipe
    saved = load_recipe(recipe.directory / f"{OWN[0]}.1" / "recipe.yaml")
    assert (saved.arm, saved.seed, saved.value.align, saved.value.strength) == ("v", 1, "dot", 1)
    assert load_recipe(recipe.directory / "one-hot.1/recipe.yaml").value == recipe.value
    # What is set to match V follows the only V there is, and keeps its own settings.
    after = load_recipe(recipe.directory / f"{OWN[1]}.1" / "recipe.yaml").control
    assert (after.alpha, after.keep) == (0.5, 0.75)


def test_table_remarks_and_curves_name_arms_with_their_settings(with_settings):
    results, recipe = with_settings.results.figures, with_settings.recipe
    assert DOT in list(table(results, recipe).columns[0].cells)
    assert f"{DOT} minus one-hot" in "\n".join(remarks(results, recipe))
    assert draw_curves(results, recipe).stat().st_size > 1000


def test_the_report_and_the_card_include_arms_with_settings(with_settings):
    directory = with_settings.recipe.directory
    study = collect(directory)
    assert {arm: len(runs) for arm, runs in study.runs.items()} == {"step-0": 1} | dict.fromkeys(ENTRIES[:3], 2)
    card = (directory / f"{OWN[0]}.1" / "model/README.md").read_text()
    assert "All arms of the comparison" in card


def test_names_of_directories_differ_between_entries():
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


def test_a_difference_that_rounds_to_0_has_no_minus():
    from vpretrain.compare.tables import interval

    told = interval({"mean": -1e-9, "low": -2e-5, "high": 0.25}, "nats")
    assert told == "+0.0000 nats, 95 % interval [+0.0000, +0.2500]"
