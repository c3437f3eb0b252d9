"""Freeing the disk: what a resume or an export needs stays, and nothing goes without being asked for."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import torch
from worlds import tiny_recipe

from vpretrain import run_recipe
from vpretrain.cli.parser import main
from vpretrain.run.checkpoint import checkpoints, save_checkpoint
from vpretrain.run.clean import clean, removable
from vpretrain.run.lock import locked


def run_with(directory, *steps, finished=False):
    """A run's directory as far as its disk goes, with these checkpoints."""
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("")
    for step in steps:
        save_checkpoint(directory / "checkpoints", step, {"learner": {"w": torch.ones(1000)}}, {}, keep=99)
    if finished:
        (directory / "model").mkdir()
        (directory / "model/model.safetensors").write_text("the model")
        (directory / "result.json").write_text("{}")
    return directory


def names(found):
    return {one.run.name: [path.name for path in one.paths] for one in found}


def test_of_each_run_the_newest_checkpoint_stays(tmp_path):
    run_with(tmp_path / "runs/going", 1, 2, 3)
    run_with(tmp_path / "runs/group/done", 1, 2, finished=True)
    run_with(tmp_path / "runs/one", 5)
    found = removable(tmp_path / "runs")
    assert names(found) == {"going": ["step-00000001", "step-00000002"], "done": ["step-00000001"]}
    size = sum(one.size for one in found)
    assert size > 3 * 4000
    assert clean(found) == size
    assert [path.name for path in checkpoints(tmp_path / "runs/going/checkpoints")] == ["step-00000003"]
    assert [path.name for path in checkpoints(tmp_path / "runs/group/done/checkpoints")] == ["step-00000002"]
    assert removable(tmp_path / "runs") == []


def test_only_if_told_so_the_newest_of_a_finished_run_goes_and_its_model_stays(tmp_path):
    done = run_with(tmp_path / "done", 1, 2, finished=True)
    run_with(tmp_path / "going", 1, 2)
    bare = run_with(tmp_path / "bare", 1, 2)
    (bare / "result.json").write_text(
        "{}"
    )  # finished, but without its model, which export would make of the checkpoint
    found = removable(tmp_path, finished=True)
    assert names(found) == {
        "bare": ["step-00000001"],
        "done": ["step-00000001", "step-00000002"],
        "going": ["step-00000001"],
    }
    clean(found)
    assert checkpoints(done / "checkpoints") == []
    assert (done / "model/model.safetensors").read_text() == "the model"


def test_a_damaged_newest_checkpoint_is_none_to_resume_from(tmp_path):
    run = run_with(tmp_path / "run", 1, 2, 3)
    (run / "checkpoints/step-00000003/state.json").write_text("{ ")
    assert names(removable(run)) == {"run": ["step-00000001", "step-00000003"]}
    for step in (1, 2):
        (run / f"checkpoints/step-0000000{step}/state.json").write_text("{ ")
    assert removable(run) == []


def test_what_killed_processes_left_goes_too(tmp_path):
    run = run_with(tmp_path / "run", 1)
    for name in ("checkpoints/.writing-00000002", "checkpoints/.step-00000000.old", ".model.writing"):
        (run / name).mkdir()
        (run / name / "part").write_text("x" * 100)
    (found,) = removable(tmp_path)
    assert {path.name for path in found.paths} == {".writing-00000002", ".step-00000000.old", ".model.writing"}
    assert clean([found]) == 300
    assert sorted(path.name for path in run.rglob("*") if path.name.startswith(".") and path.name != ".lock") == []


def test_runs_in_use_and_runs_that_have_gone_on_are_left_alone(tmp_path, capsys):
    run = run_with(tmp_path / "group/run", 1, 2)
    for used in (run, run.parent):  # between the rounds of a comparison only its own directory is locked
        with locked(used):
            assert removable(tmp_path) == []
        assert "is in use: nothing of it is removed" in capsys.readouterr().err
    found = removable(tmp_path)
    save_checkpoint(run / "checkpoints", 3, {"learner": {"w": torch.ones(9)}}, {}, keep=99)
    assert clean(found) == 0
    assert "has gone on since" in capsys.readouterr().err
    with locked(run):
        assert clean(found) == 0
    assert "another process uses" in capsys.readouterr().err
    assert len(checkpoints(run / "checkpoints")) == 3


def test_a_run_that_was_cleaned_resumes_where_it_was(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot", checkpoint={"every_steps": 2, "keep": 9})
    whole = run_recipe(recipe)
    (recipe.directory / "result.json").unlink()
    assert main(["clean", str(tmp_path / "runs"), "--yes"]) == 0
    assert run_recipe(recipe, resume=True).answer_nll == whole.answer_nll


def test_the_command_asks_and_says_how_much_it_frees(tmp_path, capsys, monkeypatch):
    run = run_with(tmp_path / "run", 1, 2)
    assert main(["clean", str(tmp_path)]) == 2  # no terminal
    printed = capsys.readouterr()
    assert "add --yes" in printed.err
    assert f"{run}: step-00000001" in printed.out
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer, left in (("", 2), ("no", 2), ("y", 1)):
        monkeypatch.setattr("builtins.input", lambda question, said=answer: said)
        assert main(["clean", str(tmp_path)]) == 0
        assert len(checkpoints(run / "checkpoints")) == left
    assert re.search(r"freed 4,\d{3} bytes", capsys.readouterr().out)
    assert main(["clean", str(tmp_path)]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main(["clean", str(tmp_path / "gone")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_without_an_answer_nothing_is_removed(tmp_path, capsys, monkeypatch):
    run = run_with(tmp_path / "run", 1, 2)
    monkeypatch.setattr("sys.stdin", None)
    assert main(["clean", str(tmp_path)]) == 2
    assert "add --yes" in capsys.readouterr().err

    def end(question):
        raise EOFError

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", end)
    assert main(["clean", str(tmp_path)]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert len(checkpoints(run / "checkpoints")) == 2


def test_results_survive(tmp_path):
    run = run_with(tmp_path / "run", 1, 2, finished=True)
    (run / "result.json").write_text(json.dumps({"steps": 2}))
    clean(removable(tmp_path, finished=True))
    assert json.loads((run / "result.json").read_text()) == {"steps": 2}
    assert (run / "metrics.jsonl").exists()
