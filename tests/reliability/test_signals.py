"""Signals in any phase, and other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from sessions import assert_same_end, end_of, session_of
from worlds import small_recipe

from vpretrain import UserError, run_recipe
from vpretrain.cli.parser import main
from vpretrain.errors import Interrupted
from vpretrain.modality import MODALITIES
from vpretrain.recipe import save_recipe
from vpretrain.run import session as sessions
from vpretrain.run.checkpoint import checkpoints
from vpretrain.run.dry_run import seconds_of_a_step
from vpretrain.run.hooks import Hook, MetricsLog
from vpretrain.run.lock import locked

pytestmark = pytest.mark.reliability

# Where the signal comes: what is called there, and whether a checkpoint is there by then.
PHASES = {
    "measuring a step": (sessions, "planned_steps", False),
    "training": (MetricsLog, "after_step", True),
    "evaluation along the way": ("parts", "evaluate", True),
    "saving": (sessions, "save_checkpoint", True),
    "exporting": ("parts", "export", True),
    "evaluation": ("parts", "evaluate", True),
}

FINISHES = {"training": "step", "evaluation along the way": "evaluation"}


@pytest.mark.promise(
    "5 SIGINT or SIGTERM in any phase: one save, exit code 128 + n, bit-equal resume; a second: at once"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_signal_in_any_phase(tmp_path, tokenizer, monkeypatch, capsys, fault, many, modality, phase, number):
    if modality == "vision" and many((number, phase) != (signal.SIGTERM, "evaluation along the way"), False):
        pytest.skip("in the long form")
    budget = {"steps": 6, "minutes": 60} if phase == "measuring a step" else {"steps": 6}
    points = 2 if phase == "evaluation along the way" else 0
    recipe = small_recipe(modality, tmp_path, tokenizer, budget=budget, evaluation={"points": points})
    if phase == "measuring a step":
        monkeypatch.setattr(sessions, "planned_steps", lambda *run: round(seconds_of_a_step(*run) * 0) + 6)
    session_of(recipe).run()
    whole = end_of(recipe)
    session = session_of(recipe)
    owner, name, trained = PHASES[phase]
    handler = signal.getsignal(number)  # SIGINT has none where the suite runs in the background
    owner = session.parts if owner == "parts" else owner
    with fault(), monkeypatch.context() as patch:
        called, sent = getattr(owner, name), []

        def signalled(*arguments, **options):
            if not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return called(*arguments, **options)

        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted) as caught:
            session.run()
        patch.undo()
        if phase == "measuring a step":
            monkeypatch.setattr(sessions, "planned_steps", lambda *run: 6)
        assert sent == [number]
        said = capsys.readouterr().err
        for now in ("step", "evaluation"):
            assert (f"stopping after this {now}; once more" in said) == (FINISHES.get(phase) == now)
        assert caught.value.exit_code == 128 + number
        assert ("continue with --resume" if trained else "nothing was trained yet") in str(caught.value)
        assert len(checkpoints(recipe.directory / "checkpoints")) == trained
        session_of(recipe, resume=trained).run()
        assert_same_end(end_of(recipe), whole)
        assert signal.getsignal(number) is handler


@pytest.mark.promise(
    "5 SIGINT or SIGTERM in any phase: one save, exit code 128 + n, bit-equal resume; a second: at once"
)
def test_a_second_signal_ends_the_run_at_once(tmp_path, tokenizer, capsys, fault):
    session = session_of(small_recipe("language", tmp_path, tokenizer))
    steps = []

    class Twice(Hook):
        def after_step(self, session, record):
            steps.append(record.step)
            if record.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    session.hooks.append(Twice())
    with fault(), pytest.raises(SystemExit) as caught:
        session.run()
    assert (caught.value.code, steps) == (128 + signal.SIGTERM, [0, 1, 2])
    assert "steps since the last checkpoint will be made again" in capsys.readouterr().err
    assert checkpoints(session.directory / "checkpoints") == []


@pytest.mark.promise(
    "5 SIGINT or SIGTERM in any phase: one save, exit code 128 + n, bit-equal resume; a second: at once"
)
def test_sigterm_before_there_is_anything_to_save(tmp_path, tokenizer, monkeypatch, capsys, fault):
    recipe = small_recipe("language", tmp_path, tokenizer)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    monkeypatch.setattr("vpretrain.run.train.begin", lambda recipe: os.kill(os.getpid(), signal.SIGTERM))
    with fault():
        assert main(["run", str(tmp_path / "recipe.yaml")]) == 128 + signal.SIGTERM
        assert capsys.readouterr().err.strip().splitlines()[-1] == "vpretrain: stopped by SIGTERM"


@pytest.mark.promise("7 a directory is one process's: a second run there is refused")
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_second_process_is_refused(tmp_path, tokenizer, fault, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer)
    script = f"""if True:
        import sys
        from pathlib import Path
        from vpretrain.run.lock import locked
        with locked(Path({str(recipe.directory)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with fault(), pytest.raises(UserError, match=r"another process uses .*/tiny: wait for its end"):
            run_recipe(recipe, overwrite=True)
        other.kill()  # the lock goes with its process
        other.wait()
        with locked(recipe.directory):
            pass
    finally:
        other.kill()
        other.communicate()


@pytest.mark.promise("8 a resumed run with other settings is refused with each that differs, unless asked for")
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_changed_recipe_is_refused_with_what_differs(tmp_path, tokenizer, fault, modality):
    run_recipe(small_recipe(modality, tmp_path, tokenizer))
    longer = {"budget": {"steps": 8}}
    changed = small_recipe(modality, tmp_path, tokenizer, optimizer={"lr": 2e-3}, value={"every_steps": 3}, **longer)
    with fault(), pytest.raises(UserError) as caught:
        run_recipe(changed, resume=True)
    assert "optimizer.lr: 0.001 -> 0.002; value.every_steps: 2 -> 3" in str(caught.value)
    result = run_recipe(changed, resume=True, accept_changes=True)
    assert result.steps == 8
    run_recipe(changed, resume=True)  # it is the run's recipe now
