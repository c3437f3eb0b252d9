"""Sweeps: what is searched, what ends early, what is kept, what goes on after an interruption, what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import character_tokenizer, runs_in_this_process
from rich.console import Console
from worlds import tiny_recipe, vision_recipe

from vpretrain.cli.parser import main
from vpretrain.compare import sweep as module
from vpretrain.compare.sweep import draw_sweep, load_space, sweep, sweep_table
from vpretrain.errors import Interrupted, MachineError, UserError
from vpretrain.recipe import load_recipe, save_recipe

SPACES = sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.yaml"))


def space(root, **fields):
    file = root / "space.yaml"
    file.write_text(yaml.safe_dump({name.replace("__", "."): what for name, what in fields.items()}))
    return file


@pytest.fixture
def pretend(monkeypatch):
    """Runs that only write what a run writes; `pretend.loss(settings, share)` says how well they do."""

    class Pretend:
        def __init__(self):
            self.commands: list[tuple[str, float]] = []
            self.stop_at: tuple[str, float] | None = None

        @staticmethod
        def loss(settings: dict[str, str], share: float) -> float:
            return abs(float(settings["optimizer.lr"]) - 0.1) + 1 - share

        def figures(self, settings, share):
            loss = self.loss(settings, share)
            return {"answer_nll": loss, "miou": -loss}

        def run(self, directory, name, settings, *, until, resume, start=None):
            self.commands.append((name, round(until, 3)))
            if self.stop_at == self.commands[-1]:
                self.stop_at = None
                raise Interrupted(2, "stopped")
            run = directory / name
            (run / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
            chosen = dict(setting.split("=") for setting in settings)
            shares = [k / 3 for k in (1, 2) if k / 3 <= until]
            lines = [json.dumps(self.figures(chosen, share)) + "\n" for share in shares]
            (run / "scores.jsonl").write_text("".join(lines))
            if until < 1:
                return False
            (run / "model").mkdir()
            (run / "result.json").write_text(json.dumps(self.figures(chosen, 1.0)))
            return True

    pretender = Pretend()
    monkeypatch.setattr(module, "run_member", pretender.run)
    return pretender


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The command of a sweep of real runs, what it printed, its directory and its results as the command left them."""
    root = tmp_path_factory.mktemp("sweep")
    save_recipe(tiny_recipe(root, character_tokenizer()), root / "recipe.yaml")
    file = space(
        root, optimizer__lr={"low": 1e-5, "high": 1e-2, "log": True}, value__subset={"choices": ["all", "last-1"]}
    )
    command = ["sweep", str(root / "recipe.yaml"), "--space", str(file), "--trials", "6", "arm=v"]
    with runs_in_this_process(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    directory = root / "runs/tiny-sweep-v"
    return command, printed.getvalue(), directory, json.loads((directory / "sweep.json").read_text())


def test_the_best_trial_is_the_complete_one_of_the_lowest_value(swept):
    results = swept[-1]
    assert [trial["number"] for trial in results["trials"]] == list(range(6))
    values = {t["number"]: t["value"] for t in results["trials"] if t["state"] == "complete"}
    assert results["best"] == min(values, key=values.get)
    assert sum(results["importances"].values()) == pytest.approx(1) or len(values) < 5


def test_of_a_sweep_the_best_recipe_and_model_are_kept_and_no_checkpoints(swept):
    _, _, directory, results = swept
    best = load_recipe(directory / "best.yaml")
    assert best.optimizer.lr == results["trials"][results["best"]]["settings"]["optimizer.lr"]
    assert [path.parent.name for path in directory.glob("*/model")] == [f"trial-{results['best']}"]
    assert not list(directory.glob("*/checkpoints"))


def test_a_sweep_prints_where_its_best_recipe_is_and_is_drawn(swept):
    _, printed, directory, _ = swept
    assert "best.yaml" in printed
    assert (directory / "sweep.png").stat().st_size > 1000


def test_a_finished_sweep_is_refused_unless_resumed_and_then_runs_nothing(swept, capsys, in_this_process):
    command = swept[0]
    assert main(command) == 2
    assert "holds runs already" in capsys.readouterr().err
    in_this_process.clear()
    assert main([*command, "--resume"]) == 0
    assert in_this_process == []


def test_what_falls_behind_ends_early_and_the_best_is_found(tmp_path, tokenizer, pretend):
    recipe = tiny_recipe(tmp_path, tokenizer)
    results = sweep(recipe, load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0})), trials=25)
    assert {t["state"] for t in results["trials"]} == {"complete", "pruned"}
    assert all(t["state"] == "complete" for t in results["trials"][:5])
    assert results["trials"][results["best"]]["settings"]["optimizer.lr"] == pytest.approx(0.1, abs=0.05)
    for trial in results["trials"]:
        turns = [until for name, until in pretend.commands if name == f"trial-{trial['number']}"]
        assert turns == (
            [0.367, 0.7, 1.0] if trial["state"] == "complete" else [0.367, 0.7, 1.0][: len(trial["rungs"])]
        )
    assert draw_sweep(results, tmp_path / "sweep.png") is not None


def test_an_interrupted_sweep_goes_on_as_it_would_have(tmp_path, tokenizer, pretend):
    lr = load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0}, value__every_steps={"low": 1, "high": 9}))
    whole = sweep(tiny_recipe(tmp_path, tokenizer, name="whole"), lr, trials=8)
    recipe = tiny_recipe(tmp_path, tokenizer, name="halted")
    pretend.stop_at = ("trial-4", 0.7)
    with pytest.raises(Interrupted):
        sweep(recipe, lr, trials=8)
    pretend.commands.clear()
    again = sweep(recipe, lr, trials=8, resume=True)
    assert pretend.commands[0] == ("trial-4", 0.7)
    assert again["trials"] == whole["trials"]


def test_a_sweep_goes_on_with_the_objective_that_it_began_with(tmp_path, tokenizer, pretend):
    lr = load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0}))
    recipe = tiny_recipe(tmp_path, tokenizer)
    sweep(recipe, lr, trials=1)
    pretend.commands.clear()
    with pytest.raises(UserError, match="was begun with another objective, answer_nll"):
        sweep(recipe, lr, trials=2, objective="retention_nll", resume=True)
    assert pretend.commands == []


def test_the_time_left_is_that_of_the_trials_that_were_run_since_the_start(tmp_path, tokenizer, pretend, monkeypatch):
    clock, told = [0.0], []

    def a_minute(*arguments, **keywords):
        clock[0] += 60
        return pretend.run(*arguments, **keywords)

    monkeypatch.setattr(module, "run_member", a_minute)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(module, "note", told.append)
    lr, recipe = load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0})), tiny_recipe(tmp_path, tokenizer)
    sweep(recipe, lr, trials=3)
    told.clear()
    sweep(recipe, lr, trials=5, resume=True)
    assert told[:3] == [f"trial {number}: finished already" for number in range(3)]
    assert [text.rpartition("; ")[2] for text in told[3:]] == ["3:00 left", "0:00 left"]  # three rungs of a minute


def test_a_disk_that_is_full_fails_no_trial(tmp_path, tokenizer, pretend, monkeypatch):
    lr = load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0}))
    recipe = tiny_recipe(tmp_path, tokenizer)

    def full(*arguments, **keywords):
        raise MachineError("trial-0 failed (exit code 74)")

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_member", full)
        with pytest.raises(MachineError):
            sweep(recipe, lr, trials=1)
    (trial,) = sweep(recipe, lr, trials=1, resume=True)["trials"]
    assert trial["state"] == "complete"


def test_settings_in_the_table_of_trials_are_no_markup():
    trial = {"number": 0, "state": "complete", "value": 1.0, "settings": {"value.subset": "name:[a-z]+"}}
    results = {"objective": "nll", "direction": "minimize", "trials": [trial], "space": {"value.subset": {}}}
    shown = io.StringIO()
    Console(file=shown, width=100).print(sweep_table(results))
    assert "name:[a-z]+" in shown.getvalue()


def test_impossible_settings_are_passed_over_and_nothing_but_those_is_refused(tmp_path, tokenizer, pretend):
    recipe = tiny_recipe(tmp_path, tokenizer)
    both = {"optimizer__lr": {"low": 0.01, "high": 1.0}, "designer__alpha_start": {"choices": [0.1, 0.9]}}
    results = sweep(recipe, load_space(space(tmp_path, **both)), trials=12)
    failed = [t for t in results["trials"] if t["state"] == "fail"]
    assert failed
    assert all(t["settings"]["designer.alpha_start"] == 0.9 for t in failed)
    only = load_space(space(tmp_path, designer__alpha_start={"choices": [0.8, 0.9]}))
    with pytest.raises(UserError, match="alpha_start must lie between"):
        sweep(recipe, only, trials=3, overwrite=True)


def test_a_loss_that_is_no_number_fails_the_trial(tmp_path, tokenizer, pretend):
    pretend.loss = lambda settings, share: float("nan")
    lr = load_space(space(tmp_path, optimizer__lr={"low": 0.01, "high": 1.0}))
    with pytest.raises(UserError, match=r"none of the first 5 trials came to its end; the last one: .* is nan"):
        sweep(tiny_recipe(tmp_path, tokenizer), lr, trials=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr: {low: 1, high: 0.5}", "low must be below high"),
        ("optimizer.lr: {low: 0, high: 0.5, log: true}", "above 0 on a log scale"),
        ("optimizer.lr: {low: 1}", "either choices, or low and high"),
        ("optimizer.lr: {choices: [1], low: 1, high: 2}", "either choices, or low and high"),
        ("optimizer.lr: {choices: [1]}", "two or more"),
        ("optimizer.lr: {lo: 1, high: 2}", "Extra inputs"),
        ("[1, 2]", "dictionary"),
        ("{}", "names no setting"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_spaces_get_one_line(tmp_path, text, message):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_space(file)
    assert "\n" not in str(caught.value)


def test_a_wrong_name_shows_before_the_long_work(tmp_path, tokenizer, capsys):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    file = space(tmp_path, optimizer__lrr={"low": 1e-5, "high": 1e-2})
    assert main(["sweep", str(tmp_path / "recipe.yaml"), "--space", str(file)]) == 2
    assert "did you mean 'optimizer.lr'?" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "recipe.yaml"), "--space", str(tmp_path / "none.yaml")]) == 2
    assert "cannot read the space" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_space_of_vision_is_version_1_s_with_what_table_11_adds():
    (file,) = [file for file in SPACES if file.stem == "vision"]
    ranges = load_space(file)
    lr = ranges["optimizer.lr"]
    assert (lr.low, lr.high, lr.log) == (1e-6, 5e-5, True)
    choices = {name: found.choices for name, found in ranges.items() if found.choices}
    keep = choices["designer.keep"]
    assert (min(keep), max(keep)) == (0.4, 0.7)
    assert set(choices["value.batch_size"]) == {32, 64, 128} | {16}
    weights = {0.5, 1, 2, 4, 8, 16}
    assert set(choices["feedback.depth"]) == weights
    assert set(choices["feedback.segmentation"]) == weights | {32}


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_ready_spaces_fit_their_recipes(tmp_path, tokenizer, file, pretend):
    pretend.loss = lambda settings, share: share
    recipe = vision_recipe(tmp_path) if file.stem == "vision" else tiny_recipe(tmp_path, tokenizer)
    results = sweep(recipe, load_space(file), trials=6)
    assert results["trials"][0]["state"] == "complete"
