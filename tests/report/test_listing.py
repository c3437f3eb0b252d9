"""The list of runs: a line each, from the files of directories that nothing was trained in."""

from __future__ import annotations

import json
import shutil

import pytest
from report.directories import write_comparison, write_run

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.report.listing import listing
from vpretrain.run.lock import locked


@pytest.fixture
def root(tmp_path):
    """A comparison, a run that was interrupted, and files that are no run."""
    write_comparison(tmp_path / "runs/study", seeds=(0,))
    write_run(tmp_path / "runs/alone", "v", 0, 1.2)
    (tmp_path / "runs/alone/result.json").unlink()
    (tmp_path / "runs/recipe.yaml").write_text("name: a recipe of the user's")
    (tmp_path / "runs/alone/checkpoints/step-00000001").mkdir(parents=True)
    return tmp_path / "runs"


def test_each_run_has_a_line_with_its_state_arm_budget_and_result(root):
    rows = {row[0]: row[1:] for row in listing(root)}
    assert list(rows) == ["alone", "study", "  one-hot", "  step-0", "  v"]
    assert rows["alone"] == ("interrupted", "v", "100% of 2 min", "answer NLL [95 %] 1.3000 [1.200, 1.400]")
    assert rows["  v"] == ("finished", "v", "100% of 2 min", "answer NLL [95 %] 1.1527 [1.053, 1.253]")


def test_a_comparison_has_a_line_with_its_verdict(root):
    rows = {row[0]: row[1:] for row in listing(root)}
    told = "v is better than one-hot: -0.0917 nats per token, one seed"
    assert rows["study"] == ("finished", "3 runs", "100%", told)
    (root / "study/results.json").write_text(json.dumps({"arms": 3}))
    assert [row[4] for row in listing(root) if row[0] == "study"] == ["results.json cannot be read"]
    (root / "study/results.json").unlink()
    with locked(root / "study"):
        assert [row[1:] for row in listing(root) if row[0] == "study"] == [("running", "3 runs", "100%", "-")]
    assert [row[1] for row in listing(root) if row[0] == "study"] == ["interrupted"]


def test_the_untouched_learner_uses_no_budget_and_has_no_arm(root):
    for name in ("one-hot", "v"):
        shutil.rmtree(root / "study" / name)
    (root / "study/results.json").unlink()
    with locked(root / "study"):
        rows = {row[0]: row[1:] for row in listing(root)}
    assert rows["study"][1:3] == ("1 run", "-")
    assert rows["  step-0"][1:3] == ("-", "-")


def test_one_unreadable_run_hides_no_other(root):
    (root / "alone/recipe.yaml").write_text("[")
    rows = {row[0]: row[1:] for row in listing(root)}
    assert rows["alone"][0] == "unreadable"
    assert "not valid YAML" in rows["alone"][3]
    assert rows["  v"][0] == "finished"


def test_a_run_may_have_the_name_of_a_part_of_a_run(root):
    write_run(root / "model", "v", 0, 1.2)
    write_run(root / "alone/model", "v", 0, 1.2)  # the part of a run is none, whatever it contains
    assert [row[0] for row in listing(root)] == ["alone", "model", "study", "  one-hot", "  step-0", "  v"]


def test_a_single_run_or_comparison_can_be_named(root):
    assert [row[0] for row in listing(root / "alone")] == ["alone"]
    assert [row[0] for row in listing(root / "study")] == ["study", "  one-hot", "  step-0", "  v"]
    with pytest.raises(UserError, match="there is no directory"):
        listing(root / "gone")


def test_the_command(root, capsys, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "budget used" in printed
    assert "v is better than one-hot" in printed
    (root.parent / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs below empty\n"
