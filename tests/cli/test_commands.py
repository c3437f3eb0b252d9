"""Commands on a run: what they print, save and show while they work."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time

import pytest
from transformers import AutoModelForCausalLM

from vpretrain import modality
from vpretrain.cli.parser import main


def test_run_and_its_overrides(recipe, capsys, tmp_path):
    assert main(["run", recipe(), "--overwrite", "budget.steps=2", "arm=self-distillation", "name=two"]) == 0
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "runs/two/result.json").read_text())
    assert (result["steps"], result["arm"]) == (2, "self-distillation")
    assert "answer_nll" in printed.out
    assert str(tmp_path / "runs/two/model") in printed.out
    assert len((tmp_path / "runs/two/metrics.jsonl").read_text().splitlines()) == 2


def test_check_prints_overlap_trial_step_and_memory(recipe, capsys):
    assert main(["check", recipe()]) == 0
    text = capsys.readouterr().out
    assert "stream examples share no problem; no raw text is one of their responses" in text
    assert "a meta update and a learner step on a tiny copy of the learner: fine" in text
    assert "memory: about" in text
    assert "warning: v makes 6 steps, too few for two judgements" in text
    assert re.search(r"Pass@1 compares answers: 2 as numbers; the first true one is '(\d+)' \(.* in '.*\1'\)", text)


@pytest.mark.parametrize("arm", ["v", "one-hot", "v-paper", "self-distillation"])
def test_inspect_shows_masks_and_candidates(recipe, capsys, arm):
    assert main(["inspect", recipe(arm=arm), "--examples", "2", "--positions", "3"]) == 0
    text = capsys.readouterr().out
    assert text.count("row ") == 2
    assert text.count("(true)") == 3
    assert "Feedback pairs, domain" in text
    assert ("the tilted task whole" in text) == (arm == "v")


@pytest.mark.parametrize(("positions", "shown"), [("1", ["making the targets"]), ("0", [])])
def test_inspect_and_check_show_their_steps_and_inspect_makes_none_for_no_position(
    recipe, monkeypatch, positions, shown
):
    titles = []

    @contextlib.contextmanager
    def working(title):
        titles.append(title)
        yield

    monkeypatch.setattr("vpretrain.language.inspection.inspect.working", working)
    assert main(["inspect", recipe(), "--positions", positions]) == 0
    assert titles == shown
    monkeypatch.setattr("vpretrain.inspection.check.working", working)
    assert main(["check", recipe()]) == 0
    assert titles == [*shown, "a meta update and a learner step on a tiny copy of the learner"]


def test_evaluate_and_export(recipe, capsys, tmp_path):
    path = recipe()
    assert main(["run", path]) == 0
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert main(["export", str(tmp_path / "runs/tiny"), str(tmp_path / "exported")]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "exported"), path, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["answer_nll"] == pytest.approx(result["answer_nll"])
    assert figures["problems"] == result["problems"]
    assert main(["evaluate", str(tmp_path / "exported"), path, "evaluation.problems=2"]) == 0
    assert "answer_nll" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["check"], "loading the learner and the data"),
        (["inspect"], "loading the learner and the data"),
        (["probe", "--steps", "3"], "loading the learner and the data"),
        (["profile", "--steps", "2"], "loading the learner and the data"),
        (["doctor"], "loading the learner and the data"),
        (["evaluate"], "loading the learner and the data"),
        (["estimate", "--world-size", "1"], "counting the work of a step"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_loading_is_shown(recipe, tmp_path, monkeypatch, words, shown):
    titles = []

    @contextlib.contextmanager
    def working(title):
        titles.append(title)
        yield

    monkeypatch.setattr(modality, "working", working)
    path = recipe()
    command, *options = words
    models = [str(tmp_path / "learner")] if command == "evaluate" else []
    main([command, *models, path, *options])
    assert titles == [shown]


def test_an_interrupted_run_saves_and_can_be_resumed(recipe, tmp_path):
    path = recipe(budget={"steps": 100000}, checkpoint={"every_minutes": None})
    command = [sys.executable, "-m", "vpretrain", "run", path]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs/tiny/metrics.jsonl"
    while run.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.05)
    run.terminate()
    _, error = run.communicate(timeout=60)
    assert run.returncode == 128 + 15
    assert "continue with --resume" in error
    assert "Traceback" not in error
    steps = len(log.read_text().splitlines())
    end = f"budget.steps={steps + 2}"
    resumed = subprocess.run([*command, "--resume", end], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "runs/tiny/result.json").read_text())["steps"] == steps + 2
