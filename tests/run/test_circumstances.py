"""When, by which source and on what hardware a run was made, and nothing about who made it."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from datetime import UTC, datetime, timedelta

from worlds import tiny_recipe

from vpretrain import run_recipe
from vpretrain.run import circumstances
from vpretrain.run.circumstances import commit, hardware


def git(directory, *command):
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *command], cwd=directory, env=os.environ | identity, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_a_run_records_date_commit_and_hardware(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot", budget={"steps": 1})
    run_recipe(recipe)
    made = json.loads((recipe.directory / "provenance.json").read_text())
    assert abs(datetime.now(UTC) - datetime.fromisoformat(made["date"])) < timedelta(minutes=2)
    assert made["hardware"] == hardware()
    assert f"{len(os.sched_getaffinity(0))} cores" in made["hardware"]
    assert "commit" in made
    card = (recipe.directory / "model/README.md").read_text()
    assert "hardware: " in card
    texts = json.dumps({key: made[key] for key in ("date", "commit", "hardware")})
    assert socket.gethostname() not in texts
    assert getpass.getuser() not in texts.split()


def test_the_commit_of_a_run_is_that_of_its_start(tmp_path, tokenizer, monkeypatch):
    commits = ["first", "made while it ran"]
    monkeypatch.setattr("vpretrain.run.session.commit", lambda: commits.pop(0))
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot", budget={"steps": 1})
    run_recipe(recipe)
    assert json.loads((recipe.directory / "provenance.json").read_text())["commit"] == "first"
    assert commits == ["made while it ran"]


def test_a_source_whose_state_git_does_not_tell_has_no_commit(monkeypatch):
    known = {"--show-prefix": "src/vpretrain/", "HEAD": "b68c0a5"}
    monkeypatch.setattr(circumstances, "_git", lambda directory, *command: known.get(command[1]))
    assert commit() is None
    known["--porcelain"] = ""
    assert commit() == "b68c0a5"


def test_a_gpu_that_pytorch_cannot_use_ends_no_run(monkeypatch):
    """As with a driver that is too old: the library of the driver counts it, and PyTorch refuses it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert hardware().endswith(" GiB")


def test_the_commit_is_that_of_the_source_alone(tmp_path):
    source = tmp_path / "src/vpretrain"
    source.mkdir(parents=True)
    (source / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert commit(source) == git(tmp_path, "rev-parse", "HEAD")
    (source / "a.py").write_text("a = 2\n")
    assert commit(source) == git(tmp_path, "rev-parse", "HEAD") + "+"
    inside = tmp_path / ".venv/lib/vpretrain"  # a package in an environment within somebody's repository
    inside.mkdir(parents=True)
    assert commit(inside) != git(tmp_path, "rev-parse", "HEAD")
