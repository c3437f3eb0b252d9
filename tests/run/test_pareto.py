"""The trade-off command: every point is run, the front is what nothing beats, mistakes come before the long work."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import pytest
from conftest import runs_in_this_process
from worlds import tiny_recipe, vision_recipe

from vpretrain.cli.parser import main
from vpretrain.compare.pareto import _names, front, pareto
from vpretrain.recipe import save_recipe


def test_the_front_is_what_nothing_beats():
    scores = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.0, 0.0), "d": (1.0, -1.0), "e": (0.5, 0.5)}
    assert front(scores) == ["a", "b", "e"]
    assert front({"a": (1.0, 1.0), "twin": (1.0, 1.0)}) == ["a", "twin"]
    assert front({"a": (1.0, 0.0), "diverged": (float("nan"), 2.0)}) == ["a"]


def test_where_less_is_better_a_point_with_more_of_both_is_not_on_the_front(tmp_path, tokenizer, monkeypatch):
    nll = {"step-0": (4.0, 3.0), "one-hot": (3.5, 2.9), "lr-1": (3.0, 3.2), "lr-2": (3.6, 3.3)}
    runs = {name: {"answer_nll": a, "retention_nll": b, "problems": [{"nll": a}]} for name, (a, b) in nll.items()}
    module = sys.modules[pareto.__module__]
    monkeypatch.setattr(module, "run_study", lambda *recipe_and_members, **kwargs: runs)
    monkeypatch.setattr(module, "write_study", lambda recipe, file, results: results)
    points = pareto(tiny_recipe(tmp_path, tokenizer), [["designer.lr=1"], ["designer.lr=2"]])["points"]
    assert [name for name, point in points.items() if point["on_front"]] == ["one-hot", "lr-1"]


@pytest.fixture(scope="module")
def two_points(tmp_path_factory):
    """The command that ran two points, what it printed, its directory and its results as the command left them."""
    root = tmp_path_factory.mktemp("points")
    save_recipe(vision_recipe(root, budget={"steps": 2}), root / "recipe.yaml")
    points = ["--point", "feedback.segmentation=4,feedback.depth=1", "--point", "feedback.segmentation=0"]
    command = ["pareto", str(root / "recipe.yaml"), *points]
    with runs_in_this_process(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    directory = root / "runs/tiny-pareto"
    return command, printed.getvalue(), directory, json.loads((directory / "pareto.json").read_text())


def test_every_point_is_run_with_its_settings(two_points):
    _, _, directory, results = two_points
    assert list(results["points"]) == ["step-0", "fixed", "segmentation-4-depth-1", "segmentation-0"]
    saved = (directory / "segmentation-0/recipe.yaml").read_text()
    assert "segmentation: 0" in saved


def test_points_are_compared_in_both_objectives(two_points):
    results = two_points[-1]
    assert results["objectives"] == {"miou": "higher", "depth_rmse": "lower"}
    assert any(point["on_front"] for point in results["points"].values())
    assert results["points"]["fixed"]["minus_fixed"]["miou"]["mean"] == 0


def test_differences_of_all_points_are_corrected_for_their_number(two_points):
    points = two_points[-1]["points"]
    found = [
        minus for name in ("segmentation-4-depth-1", "segmentation-0") for minus in points[name]["minus_fixed"].values()
    ]
    clearest = min(found, key=lambda difference: difference["p"])
    assert clearest["p_holm"] == pytest.approx(min(1.0, len(found) * clearest["p"]))
    assert "p_holm" not in points["fixed"]["minus_fixed"]["miou"]


def test_the_front_is_printed_and_drawn(two_points):
    _, printed, directory, _ = two_points
    assert "on the front" in printed
    assert "of one seed, which says nothing about other seeds" in " ".join(printed.split())
    assert (directory / "pareto.png").stat().st_size > 1000


@pytest.mark.usefixtures("in_this_process")
def test_points_that_were_run_are_refused_unless_resumed(two_points, capsys):
    command = two_points[0]
    assert main(command) == 2
    assert "holds runs already" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


def test_mistakes_in_points_come_before_the_long_work(tmp_path, capsys):
    save_recipe(vision_recipe(tmp_path), tmp_path / "recipe.yaml")
    assert main(["pareto", str(tmp_path / "recipe.yaml"), "--point", "feedback.segmentatoin=4"]) == 2
    assert "did you mean 'feedback.segmentation'?" in capsys.readouterr().err
    assert main(["pareto", str(tmp_path / "recipe.yaml"), "--point", "4:1"]) == 2
    assert "must have the form field=value" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_points_of_fields_that_end_alike_get_different_names_and_twins_are_refused(tmp_path, capsys):
    sources = [["feedback.sources.0.limit=256"], ["feedback.sources.1.limit=256"]]
    assert list(_names(sources)) == ["feedback.sources.0.limit-256", "feedback.sources.1.limit-256"]
    assert list(_names([["a.limit=1"], ["a.limit=2"]])) == ["limit-1", "limit-2"]
    save_recipe(vision_recipe(tmp_path), tmp_path / "recipe.yaml")
    assert main(["pareto", str(tmp_path / "recipe.yaml"), *["--point", "feedback.depth=4"] * 2]) == 2
    assert "two points have the same settings" in capsys.readouterr().err


def test_an_objective_that_is_not_measured_is_named_after_the_first_run(tmp_path, tokenizer, capsys, in_this_process):
    evaluation = tiny_recipe(tmp_path, tokenizer).evaluation.model_dump(mode="json") | {"retention": []}
    save_recipe(tiny_recipe(tmp_path, tokenizer, evaluation=evaluation), tmp_path / "recipe.yaml")
    assert main(["pareto", str(tmp_path / "recipe.yaml"), "--point", "designer.lr=3e-3"]) == 2
    assert "the evaluation does not measure retention NLL" in capsys.readouterr().err
    assert len(in_this_process) == 1
    assert main(["pareto", str(tmp_path / "recipe.yaml")]) == 2
    assert "give the points" in capsys.readouterr().err
