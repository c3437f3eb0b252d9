"""`compare`: what it prints and saves, what asks for one of its runs, and going on after an interruption."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time

import pytest
from commands import refusal, write_recipe

from vpretrain.cli.parser import main
from vpretrain.report.collect import collect
from vpretrain.report.verdict import verdict_lines


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison, each run in its own process: the recipe, its directory, and what was printed and saved at once."""
    root = tmp_path_factory.mktemp("compared")
    path = write_recipe(root, evaluation={"problems": 6, "pass_at_1_problems": 0}, value={"strength": 1.0})
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", path, "--arms", "one-hot,v"]) == 0
    directory = root / "runs/tiny"
    return path, directory, printed.getvalue(), json.loads((directory / "results.json").read_text())


def test_compare_prints_a_table_and_draws_curves(compared):
    _, directory, printed, _ = compared
    for word in ("step-0", "one-hot", "answer NLL", "retention NLL", "tokens/s", "peak memory", "paired over problems"):
        assert word in printed
    assert (directory / "curves.png").stat().st_size > 1000


def test_compare_says_the_verdict_of_the_report(compared):
    _, directory, printed, _ = compared
    said = " ".join(verdict_lines(collect(directory)))
    assert "v minus one-hot is" in said
    assert " ".join(said.split()) in " ".join(printed.split())  # lines are broken


def test_compare_saves_every_figure_of_every_arm_and_their_difference(compared):
    results = compared[-1]
    assert list(results["arms"]) == ["step-0", "one-hot", "v"]
    figures = {
        "answer_nll",
        "pass_at_1",
        "retention_nll",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_s",
        "peak_memory_bytes",
    }
    assert all(figures <= arm.keys() for arm in results["arms"].values())
    v = results["arms"]["v"]
    assert v["meta_updates"] == 2  # those after the first step
    difference = results["differences"]["nll"]["v"]["one-hot"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    expected = results["arms"]["v"]["answer_nll"] - results["arms"]["one-hot"]["answer_nll"]
    assert difference["mean"] == pytest.approx(expected)
    assert results["arms"]["step-0"]["steps"] == 0


def test_export_names_the_runs_of_a_comparison(compared, capsys, tmp_path):
    directory = compared[1]
    told = refusal(capsys, "export", str(directory), str(tmp_path / "exported"))
    assert f"{directory} holds several runs: name one of them: {directory}/one-hot, {directory}/v\n" in told
    assert not (tmp_path / "exported").exists()


def test_gate_and_evaluate_ask_for_one_of_a_comparisons_runs(compared, capsys):
    path, directory = compared[:2]
    assert f"name one of them: {directory}/one-hot, {directory}/" in refusal(capsys, "gate", str(directory))
    assert f"{directory} has no model: give the directory of" in refusal(capsys, "evaluate", str(directory), path)


def test_a_comparison_is_refused_where_one_is_and_resumed_to_the_same_end(compared, capsys):
    """Last of those on `compared`: it changes the directory."""
    path, directory, _, results = compared
    assert "--resume" in refusal(capsys, "compare", path)
    assert "changed recipe" in refusal(capsys, "compare", path, "--resume", "optimizer.lr=1")
    (directory / "v/result.json").unlink()
    assert main(["compare", path, "--resume"]) == 0
    assert "one-hot: finished already" in capsys.readouterr().err
    again = json.loads((directory / "results.json").read_text())
    assert again["arms"]["v"]["answer_nll"] == results["arms"]["v"]["answer_nll"]


def test_an_interrupted_comparison_saves_the_running_arm_and_goes_on(recipe, tmp_path):
    small = {"problems": 2, "pass_at_1_problems": 0}
    path = recipe(
        budget={"steps": 100}, value={"every_steps": 50}, checkpoint={"every_minutes": None}, evaluation=small
    )
    command = [sys.executable, "-m", "vpretrain", "compare", path, "--arms", "one-hot"]
    comparison = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs/tiny/one-hot/metrics.jsonl"
    while comparison.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.01)
    comparison.send_signal(signal.SIGINT)
    _, error = comparison.communicate(timeout=60)
    assert comparison.returncode == 128 + 2, error
    assert "go on with the same command and --resume" in error
    steps = len(log.read_text().splitlines())
    assert steps < 100
    assert [path.name for path in (log.parent / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert len(log.read_text().splitlines()) == 100
