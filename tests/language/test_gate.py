"""The gate by kind of token: groups that partition the targets, means that are those of the tasks."""

from __future__ import annotations

import json

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain.cli.parser import main
from vpretrain.language.assemble import assemble
from vpretrain.language.inspection.gate import KINDS, draw_gate, gate, kind
from vpretrain.run import run_recipe
from vpretrain.run.session import Session


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" the", "word"), ("don't", "word"), (" 12", "number"), ("x2", "number"), ("####", "punctuation"), ("\n\n", "space"),
     ("", "space"), ("<|end|>", "other"), (" -", "punctuation")],
)  # fmt: skip
def test_kinds_of_token(text, expected):
    assert kind(text) == expected
    assert expected in KINDS


def test_groups_partition_the_targets_and_means_are_those_of_the_next_tasks(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, value={"strength": 1.0})
    run_recipe(recipe)
    results = gate(recipe.directory, 3)
    for grouping, groups in results["by"].items():
        assert sum(found["share"] for found in groups.values()) == pytest.approx(1), grouping
    assert {"word", "number", "punctuation"} <= set(results["by"]["kind of token"])
    assert set(results["by"]["domain"]) == {"sums", "text"}

    parts = assemble(recipe)
    Session(recipe, parts, resume=True)
    alphas = []
    for _ in range(3):
        (batch,) = parts.stream.next()
        with torch.no_grad():
            task = parts.construction.targets(batch, parts.learner.forward(batch).detach())
        alphas.append(task.side["alpha_N"])
    alpha_N = torch.cat(alphas)
    assert results["targets"] == len(alpha_N)
    for groups in results["by"].values():
        mean = sum(found["share"] * found["alpha"] for found in groups.values())
        assert mean == pytest.approx(float(alpha_N.mean()), abs=1e-6)
    assert float(alpha_N.std()) > 0  # else any grouping would do


def test_a_single_grouping_is_drawn(tmp_path):
    groups = {"word": {"alpha": 0.1, "share": 0.5}, "number": {"alpha": 0.2, "share": 0.5}}
    file = draw_gate({"arm": "v", "targets": 2, "by": {"kind of token": groups}}, tmp_path / "gate.png")
    assert file.stat().st_size > 1000


def test_the_command_and_its_refusals(tmp_path, tokenizer, capsys):
    recipe = tiny_recipe(tmp_path, tokenizer)
    run_recipe(recipe)
    moved = recipe.directory.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["gate", str(moved), "--batches", "2"]) == 0
    assert "kind of token" in capsys.readouterr().out
    assert json.loads((moved / "gate.json").read_text())["arm"] == "v"
    assert (moved / "gate.png").stat().st_size > 1000

    plain = tiny_recipe(tmp_path, tokenizer, name="plain", arm="one-hot")
    run_recipe(plain)
    vision = vision_recipe(tmp_path, name="views", budget={"steps": 1})
    run_recipe(vision)
    capsys.readouterr()
    for run, words in (
        (tmp_path, "no recipe.yaml"),
        (plain.directory, "follow no feedback"),
        (vision.directory, "views.png"),
    ):
        assert main(["gate", str(run)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
