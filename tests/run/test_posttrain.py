"""Paths of several trainings: what is run from what, what is charged, what is told."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from types import SimpleNamespace

import pytest
from conftest import character_tokenizer, runs_in_this_process
from worlds import tiny_recipe

from vpretrain.cli.parser import main
from vpretrain.compare.posttrain import _stages, draw_posttrain, posttrain, posttrain_table
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe, save_recipe

PATHS = ["v", "v+sft", "v+grpo"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three paths over two seeds: the command, the runs it started, what it printed, and what it left."""
    root = tmp_path_factory.mktemp("paths")
    recipe = tiny_recipe(root, character_tokenizer(), budget={"steps": 4}, direct={"problems": 1, "group": 2})
    save_recipe(recipe, root / "recipe.yaml")
    command = [
        "posttrain",
        str(root / "recipe.yaml"),
        "--seeds",
        "0,1",
        "--paths",
        ",".join(PATHS),
        "evaluation.points=2",
    ]
    with runs_in_this_process() as started, contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    directory = root / "runs/tiny-posttrain"
    results = json.loads((directory / "posttrain.json").read_text())
    return SimpleNamespace(
        command=command, started=started, printed=printed.getvalue(), directory=directory, results=results
    )


def test_paths_share_their_first_stages(finished):
    runs = [next(word for word in command if word.startswith("name=")) for command in finished.started]
    assert len(runs) == len(set(runs)) == 1 + 2 * 4  # step-0; by seed: v, half of v, then sft, then grpo
    second = load_recipe(finished.directory / "v_sft.2of2.1" / "recipe.yaml")
    assert second.learner.name == str(finished.directory / "v.1of2.1")
    assert (second.budget.steps, second.arm, second.seed) == (2, "sft", 1)


def test_a_curve_goes_from_the_untouched_learner_through_the_ends_of_the_stages(finished):
    for found in finished.results["paths"].values():
        assert [run["steps"] for run in found["end"]["runs"]] in ([4, 4], [2, 2])
        for curve in found["curve"]:
            assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
            assert curve[-1]["ends"]
    whole, half = (finished.results["paths"][path] for path in ("v", "v+sft"))
    assert whole["curve"][0][0] == half["curve"][0][0]  # the untouched learner
    assert sum(point["ends"] for point in half["curve"][0]) == 2


def test_a_path_is_charged_for_all_its_stages(finished):
    half = finished.results["paths"]["v+sft"]
    stages = [f"{stage}.{seed}" for stage in ("v.1of2", "v_sft.2of2") for seed in (0, 1)]
    spent = sum(json.loads((finished.directory / name / "result.json").read_text())["seconds"] for name in stages)
    assert half["seconds"] == pytest.approx(spent / 2)


def test_paths_are_compared_with_the_first_and_drawn(finished):
    assert list(finished.results["paths"]) == PATHS
    assert "minus v" in " ".join(finished.printed.split())
    recipe = load_recipe(finished.directory / "recipe.yaml")
    assert posttrain_table(finished.results, recipe).title.endswith("paired over problems and 2 seeds")
    one = posttrain_table(finished.results | {"seeds": [0]}, recipe)
    assert one.title.endswith("problems of one seed, which says nothing about other seeds")
    minus_v = finished.results["paths"]["v+sft"]["minus"]["v"]
    assert minus_v["low"] <= minus_v["mean"] <= minus_v["high"]
    assert (finished.directory / "posttrain.png").stat().st_size > 1000


def test_differences_from_the_first_path_are_corrected_for_their_number(finished):
    paths = finished.results["paths"]
    found = [paths[path]["minus"]["v"] for path in PATHS[1:]]
    clearest = min(found, key=lambda difference: difference["p"])
    assert clearest["p_holm"] == pytest.approx(min(1.0, len(found) * clearest["p"]))
    table = posttrain_table(finished.results, load_recipe(finished.directory / "recipe.yaml"))
    (cells,) = [list(column.cells) for column in table.columns if str(column.header).startswith("minus v")]
    assert [cell.rsplit("p = ", 1)[-1] for cell in cells[2:]] == [f"{minus['p_holm']:.2g}" for minus in found]


def test_so_are_those_in_pass_at_1_which_are_told_below_the_table(finished):
    beside = [finished.results["paths"][path]["minus_beside"]["solved"]["v"] for path in PATHS[1:]]
    assert all("p_holm" in minus for minus in beside)
    said = " ".join(finished.printed.split())
    for path, minus in zip(PATHS[1:], beside, strict=True):
        assert (
            f"{path} minus v on problems that greedy decoding solves (Pass@1): {minus['mean']:+.4f} of the problems"
            in said
        )


@pytest.mark.parametrize(("longer", "unit", "scale"), [(1, "seconds", 1), (1e6, "hours", 3600)])
def test_pass_at_1_is_drawn_against_the_time_on_one_device(finished, monkeypatch, longer, unit, scale):
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    results = json.loads(json.dumps(finished.results))
    for found in results["paths"].values():
        for point in (point for curve in found["curve"] for point in curve):
            point["seconds"] *= longer
    draw_posttrain(results, load_recipe(finished.directory / "recipe.yaml"))
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["answer NLL", "retention NLL", "Pass@1"]
    assert axes[2].get_xlabel() == f"{unit} on one device, attempts included"
    curve = results["paths"]["v"]["curve"][0]
    expected = [[point["seconds"] / scale, point["pass_at_1"]] for point in curve]
    assert axes[2].get_lines()[0].get_xydata().tolist() == expected


def test_resuming_finished_paths_runs_nothing(finished, in_this_process):
    assert main([*finished.command, "--resume"]) == 0
    assert in_this_process == []


def test_unknown_arms_are_refused_before_the_long_work(tmp_path, tokenizer):
    with pytest.raises(UserError, match="unknown arm dpo"):
        posttrain(tiny_recipe(tmp_path, tokenizer), ["v+dpo"])
    with pytest.raises(UserError, match="'dto' is unknown: choose from 'dot'"):
        posttrain(tiny_recipe(tmp_path, tokenizer), ["one-hot+v:value.align=dto"])
    assert not (tmp_path / "runs").exists()


def test_the_steps_of_the_stages_add_up_to_the_budget(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 7})
    shares = [word for run in _stages(recipe, "v+sft+grpo", 0).values() for word in run if word.startswith("budget.")]
    assert shares == ["budget.steps=2", "budget.steps=2", "budget.steps=3"]
    with pytest.raises(UserError, match=r"budget.steps=7 leaves one of 8 stages without a step: give at least 8"):
        posttrain(recipe, ["v", "+".join(["one-hot"] * 8)])


def test_where_nothing_is_measured_no_path_is_begun(tmp_path, tokenizer, monkeypatch):
    begun = []

    def run_study(recipe, members, **kwargs):
        begun.extend(members)
        return {"step-0": {"problems": []}}

    monkeypatch.setattr(sys.modules[posttrain.__module__], "run_study", run_study)
    with pytest.raises(UserError, match="the evaluation measures nothing by which paths can be compared"):
        posttrain(tiny_recipe(tmp_path, tokenizer), ["v"])
    assert begun == []


def test_a_stage_may_have_settings_of_its_own(tmp_path, tokenizer, in_this_process):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 2})
    path = "v:value.align=dot+one-hot"
    results = posttrain(recipe, [path])
    assert list(results["paths"]) == [path]
    first = load_recipe(recipe.directory / "v-value.align-dot.1of2.0/recipe.yaml")
    assert (first.value.align, first.budget.steps) == ("dot", 1)
    second = load_recipe(recipe.directory / "v-value.align-dot_one-hot.2of2.0/recipe.yaml")
    assert (second.arm, second.value.align) == ("one-hot", recipe.value.align)
