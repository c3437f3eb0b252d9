"""Trackers: they show what the logs hold, each step once, and no run ends for them."""

from __future__ import annotations

import json
import sys
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from sessions import session_of
from worlds import tiny_recipe

from vpretrain import UserError, run_recipe
from vpretrain.compare.compare import compare
from vpretrain.config import TrackingConfig
from vpretrain.errors import Paused
from vpretrain.files import read_lines
from vpretrain.language.assemble import assemble
from vpretrain.run import tracking
from vpretrain.run.hooks import Hook, Tracking
from vpretrain.run.session import Session


class Fake:
    """In the place of a tracker's class: keeps what it is told. As W&B, it goes on with the run whose id it gets."""

    made: list[Fake]
    fails_at: set[str]

    def __init__(self, run_name, **options):
        self.options = {"run_name": run_name, **options}
        self.told, self.settings, self.finished = [], None, False
        self.alerts = []
        self.tracker = SimpleNamespace(id=options.get("id") or f"id-{len(self.made)}", alert=self._alert)
        self.made.append(self)

    def _maybe(self, what):
        if what in self.fails_at:
            raise ConnectionError(f"no network to {what}\nand more")

    def _alert(self, title, text, level):
        self._maybe("alert")
        self.alerts.append((title, text, level.name))

    def start(self):
        self._maybe("start")

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        self._maybe("log")
        self.told.append((step, values))

    def finish(self):
        self._maybe("finish")
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """W&B, replaced; its package need not be there."""
    monkeypatch.setattr(Fake, "made", [], raising=False)
    monkeypatch.setattr(Fake, "fails_at", set(), raising=False)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(AlertLevel=Enum("AlertLevel", ["INFO", "WARN", "ERROR"])))
    monkeypatch.setattr(tracking, "_installed", lambda name: name in ("wandb", "tensorboard"))
    return Fake


def wandb_recipe(tmp_path, tokenizer, **changes):
    return tiny_recipe(tmp_path, tokenizer, tracking={"trackers": ["wandb"], "project": "sums"}, **changes)


def crashed(recipe, step):
    """A run that ends without a word after a step, and what goes on with it."""
    session = session_of(recipe)

    class Crash(Hook):
        def after_step(self, session, record):
            if record.step == step:
                raise EOFError("the power is out")

    session.hooks.append(Crash())
    with pytest.raises(EOFError):
        session.run()
    return session


def events(recipe):
    """What TensorBoard shows: tag -> step -> value, and whether any step is shown twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(recipe.directory / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    curves = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert all(len(dict(points)) == len(points) for points in curves.values())
    return {tag: dict(points) for tag, points in curves.items()}


def as_events(recipe):
    """What the run's own files say that TensorBoard should show, in its precision."""
    files = {"train": read_lines(recipe.directory / "metrics.jsonl")}
    result = json.loads((recipe.directory / "result.json").read_text())
    files["evaluation"] = [*read_lines(recipe.directory / "scores.jsonl"), {**result, "step": result["steps"]}]
    expected = {}
    for kind, lines in files.items():
        for line in lines:
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    of_tag = expected.setdefault(f"{kind}/{key}", {})
                    of_tag[line["step"]] = pytest.approx(torch.tensor(float(value)).item(), rel=1e-6)
    return expected


@pytest.mark.usefixtures("judged_early")
def test_tensorboard_shows_what_the_logs_hold(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, evaluation={"points": 3})
    run_recipe(recipe)
    shown = events(recipe)
    assert shown == as_events(recipe)
    assert {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/g_down_norm",
        "train/alpha",
        "train/tokens",
    } <= shown.keys()
    assert set(shown["train/loss"]) == set(range(6))
    assert set(shown["evaluation/answer_nll"]) == {1, 3, 6}
    assert list((recipe.directory / "tensorboard").glob("*/hparams.yml"))


def test_a_run_that_goes_on_shows_no_step_twice_in_tensorboard(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 3}, evaluation={"points": 3})
    crashed(recipe, 4)
    assert set(events(recipe)["train/loss"]) == {0, 1, 2, 3, 4}
    run_recipe(recipe, resume=True)
    assert events(recipe) == as_events(recipe)
    assert len(list((recipe.directory / "tensorboard").glob("events*"))) == 2


def test_an_overwritten_run_shows_nothing_of_the_one_before(tmp_path, tokenizer):
    run_recipe(tiny_recipe(tmp_path, tokenizer))
    shorter = tiny_recipe(tmp_path, tokenizer, budget={"steps": 2})
    run_recipe(shorter, overwrite=True)
    assert events(shorter) == as_events(shorter)
    assert len(list((shorter.directory / "tensorboard").glob("events*"))) == 1


def test_a_tracker_goes_on_with_its_run_and_is_told_each_step_once(tmp_path, tokenizer, fake):
    recipe = wandb_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 2})
    crashed(recipe, 4)
    session = Session(recipe, assemble(recipe), resume=True)
    session.run()
    first, second = fake.made
    assert first.finished
    assert second.finished
    assert (first.options["id"], second.options["id"]) == (None, "id-0")
    assert first.options["run_name"] == "sums"
    assert first.options["name"] == "runs/tiny"
    told = [
        (step, kind) for one in fake.made for step, values in one.told for kind in {k.split("/")[0] for k in values}
    ]
    assert told == [*((step, "train") for step in range(6)), (6, "evaluation")]
    lines = read_lines(recipe.directory / "metrics.jsonl")
    losses = [values["train/loss"] for one in fake.made for step, values in one.told if step < 6]
    assert losses == [line["loss"] for line in lines]
    assert first.settings["optimizer.lr"] == 1e-3
    assert first.settings["stream.sources.0.weight"] == 0.7
    assert second.settings is None


def test_twice_interrupted_still_once(tmp_path, tokenizer, fake):
    recipe = wandb_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 2, "keep": 3})
    crashed(recipe, 5)
    for name in ("step-00000004", "step-00000006"):
        (recipe.directory / "checkpoints" / name / "manifest.json").write_text("{}")
    tracking = Tracking()
    tracking.before_run(Session(recipe, assemble(recipe), resume=True))
    tracking.close()  # stopped again at once
    (recipe.directory / "metrics.jsonl").write_text("")
    Session(recipe, assemble(recipe), resume=True).run()
    assert [step for one in fake.made for step, _ in one.told] == [0, 1, 2, 3, 4, 5, 6]


def test_no_time_of_a_tracker_is_charged(tmp_path, tokenizer, fake, monkeypatch):
    recipe = wandb_recipe(tmp_path, tokenizer)
    session = session_of(recipe)
    running = []
    monkeypatch.setattr(Fake, "log", lambda self, values, step: running.append(session.budget._running_since))
    session.run()
    assert running == [None] * 7


def test_a_tracker_with_notifications_is_told_how_a_run_ends_and_not_of_a_pause(tmp_path, tokenizer, fake):
    recipe = wandb_recipe(tmp_path, tokenizer)
    with pytest.raises(Paused):
        run_recipe(recipe, until=0.5)
    result = run_recipe(recipe, resume=True)
    crashed(recipe, 4)
    assert [one.alerts for one in fake.made] == [
        [],
        [("runs/tiny", f"finished: 6 steps, answer NLL {result.answer_nll:.4g}", "INFO")],
        [("runs/tiny", "ended early: the power is out", "WARN")],
    ]


def test_a_run_in_the_handler_of_another_error_has_not_ended_early(tmp_path, tokenizer, fake):
    try:
        raise KeyError("of the loop around it")
    except KeyError:
        run_recipe(wandb_recipe(tmp_path, tokenizer))
    assert [text.partition(":")[0] for _, text, _ in fake.made[0].alerts] == ["finished"]


@pytest.mark.parametrize("when", ["log", "alert", "finish"])
def test_a_tracker_that_fails_is_left_with_one_warning(tmp_path, tokenizer, fake, capsys, when):
    fake.fails_at.add(when)
    recipe = wandb_recipe(tmp_path, tokenizer)
    assert run_recipe(recipe).steps == 6
    told = capsys.readouterr().err
    assert told.count(f"the tracker wandb failed (no network to {when})") == 1
    assert "and more" not in told
    assert len(read_lines(recipe.directory / "metrics.jsonl")) == 6


def test_so_is_tensorboard_even_where_it_does_not_start(tmp_path, tokenizer, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise OSError(28, "No space left on device")

    recipe = tiny_recipe(tmp_path, tokenizer)
    for name in ("log", "start"):
        monkeypatch.setattr(TensorBoardTracker, name, broken)
        assert run_recipe(recipe, overwrite=True).steps == 6
        assert capsys.readouterr().err.count("the tracker tensorboard failed ([Errno 28] No space left on device)") == 1


def test_a_tracker_that_was_asked_for_and_does_not_start_ends_the_run(tmp_path, tokenizer, fake):
    fake.fails_at.add("start")
    recipe = wandb_recipe(tmp_path, tokenizer)
    with pytest.raises(
        UserError, match="the tracker wandb does not start: no network to start; mend it, or leave it out"
    ):
        run_recipe(recipe)
    assert not (recipe.directory / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_what_is_not_installed_is_refused_before_anything_is_made(tmp_path, tokenizer, monkeypatch, name):
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    recipe = tiny_recipe(tmp_path, tokenizer, tracking={"trackers": [name]})
    for start in (run_recipe, lambda recipe: compare(recipe, ["v"])):
        with pytest.raises(UserError, match=rf'{name} is not installed: pip install "vpretrain\[{name}\]"'):
            start(recipe)
    assert not (recipe.directory / "recipe.yaml").exists()


def test_without_tensorboard_a_run_says_so_in_one_line(tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    recipe = tiny_recipe(tmp_path, tokenizer)
    run_recipe(recipe)
    assert capsys.readouterr().err.count("pip install tensorboard") == 1
    assert not (recipe.directory / "tensorboard").exists()


def test_a_folder_of_runs_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb_of_nobody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not tracking._installed("wandb_of_nobody")
    assert tracking._installed("accelerate")


def test_trackers_get_no_secrets_and_other_processes_track_nothing(tmp_path, tokenizer, fake):
    recipe = wandb_recipe(tmp_path, tokenizer)
    learner = recipe.learner.model_copy(update={"name": "https://me:hunter2secret@host/x"})
    recipe = recipe.model_copy(update={"learner": learner})
    recipe.directory.mkdir(parents=True)
    tracking.Trackers(recipe, 0, resumed=False, main=False).close()
    assert fake.made == []
    tracking.Trackers(recipe, 0, resumed=False).close()
    assert "optimizer.lr" in fake.made[0].settings
    assert "hunter2secret" not in str(fake.made[0].settings)


def test_trackers_may_change_when_a_run_goes_on(tmp_path, tokenizer, fake):
    recipe = tiny_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 3})
    crashed(recipe, 4)
    run_recipe(recipe.model_copy(update={"tracking": TrackingConfig(trackers=["wandb"])}), resume=True)
    assert [step for step, _ in fake.made[0].told] == [3, 4, 5, 6]
    assert fake.made[0].settings is not None


def test_mlflow_and_trackio_go_on_with_their_runs(tmp_path, tokenizer, monkeypatch):
    made = []

    def tracker(**options):
        one = SimpleNamespace(info=SimpleNamespace(run_id="abc"), name=options.get("name"))
        nothing = lambda *arguments, **options: None  # noqa: E731
        made.append(options)
        return SimpleNamespace(
            tracker=one, start=nothing, store_init_configuration=nothing, finish=nothing, log=nothing
        )

    monkeypatch.setattr(tracking, "_installed", lambda name: True)
    for name in ("mlflow", "trackio"):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, tracker)
    recipe = tiny_recipe(tmp_path, tokenizer, tracking={"trackers": ["mlflow", "trackio"]})
    recipe.directory.mkdir(parents=True)
    for resumed in (False, True):
        tracking.Trackers(recipe, 0, resumed=resumed).close()
    assert [options.get("run_id") for options in made] == [None, None, "abc", None]
    assert made[0]["experiment_name"] == made[1]["run_name"] == "vpretrain"
    assert made[3]["name"] == made[1]["name"]
    assert made[1]["config"]["optimizer.lr"] == made[3]["config"]["optimizer.lr"] == 1e-3
    tracking.Trackers(recipe, 0, resumed=False).close()  # an overwritten run is another one
    assert made[5]["name"] != made[1]["name"]
