"""NaN or infinite numbers, loss spikes, memory that does not suffice."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sessions import session_of
from worlds import small_recipe

from vpretrain import UserError, run_recipe
from vpretrain.cli.parser import main
from vpretrain.config import OptimizerConfig
from vpretrain.method.meta import MetaUpdate
from vpretrain.modality import MODALITIES
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.run.directory import failures_in_one_line
from vpretrain.run.optimizer import AdamW
from vpretrain.run.replay import replay

pytestmark = pytest.mark.reliability


def last_parameter(module):
    return next(p for p in reversed(list(module.parameters())) if p.requires_grad)


def poisoned(session, what, monkeypatch):
    """Makes a number of the third step no number; gives theta and phi as they were when it was."""
    parts, before = session.parts, {}

    def poison():
        last_parameter(parts.designer if what == "designer" else parts.learner.module).data.view(-1)[0] = math.nan
        for module in (parts.learner.module, parts.designer):
            before.update({id(p): (p, p.detach().clone()) for p in module.parameters()})

    if what == "theta after the meta update":
        update = MetaUpdate.__call__

        def updating(self, *arguments):
            record = update(self, *arguments)
            if session.budget.step == 2 and not before:
                poison()
            return record

        monkeypatch.setattr(MetaUpdate, "__call__", updating)
        return before
    draw = parts.stream.next

    def drawing():
        if session.budget.step == 2 and not before:
            poison()
        return draw()

    monkeypatch.setattr(parts.stream, "next", drawing)
    return before


@pytest.mark.promise("10 a NaN or infinite loss, gradient or value: stopped before the update, and run again by replay")
@pytest.mark.parametrize("what", ["theta", "designer", "theta after the meta update"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_nan_stops_the_run_and_is_made_again(tmp_path, tokenizer, capsys, monkeypatch, fault, modality, what):
    changes = {"value": {"feedback_every": 2, "metric": "adamw"}, "stream": {"accumulation": 2, "prefetch": 0}}
    arm = "v-paper"  # has a designer
    recipe = small_recipe(modality, tmp_path, tokenizer, arm=arm, checkpoint={"every_steps": 1}, **changes)
    session = session_of(recipe)
    before = poisoned(session, what, monkeypatch)
    with fault(), pytest.raises(UserError) as caught:
        session.run()
    monkeypatch.undo()
    text = str(caught.value)
    assert " is nan at step 2; the learner was not updated: " in text
    moved = [p for p, was in before.values() if not torch.equal(p.nan_to_num(), was.nan_to_num())]
    assert not moved
    kept = recipe.directory / "replay" / "step-00000002"
    assert f"`vpretrain replay {kept}` makes the step again" in text
    groups, state = load_checkpoint(kept)
    assert (state["step"], state["updated"]) == (2, what == "theta after the meta update")
    assert any(name.startswith("1.") for name in groups["batch"])
    assert checkpoints(recipe.directory / "checkpoints")[-1].name == "step-00000002"
    found = replay(kept)
    assert found["was"] == found["is"]
    assert found["batch"]
    assert bool(found["not_finite"]) == (what == "theta after the meta update")
    assert main(["replay", str(kept)]) == 0
    assert "made again: the " in capsys.readouterr().out


@pytest.mark.promise("10 a NaN or infinite loss, gradient or value: stopped before the update, and run again by replay")
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_learning_rate_that_explodes(tmp_path, tokenizer, fault, monkeypatch, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer, optimizer={"warmup_fraction": 0.0}, arm="v")
    # Above the bound, so that it explodes at once on any learner: neither a recipe nor a saved step may have it.
    optimizer = recipe.optimizer.model_copy(update={"lr": 1e30})
    recipe = recipe.model_copy(update={"optimizer": optimizer})
    monkeypatch.setattr("vpretrain.run.replay.parse_recipe", lambda data, origin: recipe)
    with fault(), pytest.raises(UserError, match=r"lower .*; `vpretrain replay .*` makes the step again"):
        run_recipe(recipe)
    (kept,) = (recipe.directory / "replay").iterdir()
    found = replay(kept)
    assert found["was"] == found["is"]


@pytest.mark.promise("10 a NaN or infinite loss, gradient or value: stopped before the update, and run again by replay")
def test_a_step_whose_fault_is_gone_says_so(tmp_path, tokenizer, capsys, monkeypatch, fault):
    recipe = small_recipe("language", tmp_path, tokenizer, arm="one-hot")
    session = session_of(recipe)
    with monkeypatch.context() as patch, fault():
        loss = type(session.parts.learner).loss
        patch.setattr(type(session.parts.learner), "loss", lambda self, state, task: loss(self, state, task) * math.inf)
        with pytest.raises(UserError, match="the loss is inf at step 0; the learner was not updated"):
            session.run()
    assert main(["replay", str(recipe.directory / "replay" / "step-00000000")]) == 1
    assert "made again: every number is finite" in capsys.readouterr().out
    assert main(["replay", str(tmp_path)]) == 2


def test_a_loss_spike_is_skipped():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = AdamW([("w", parameter)], OptimizerConfig(lr=0.1, skip_above=3.0, warmup_fraction=0), total_steps=100)

    def step(loss):
        parameter.grad = torch.ones(1)
        before = parameter.detach().clone()
        record = optimizer.step(loss)
        return record.get("skipped", 0.0), torch.equal(before, parameter)

    assert [step(2.0) for _ in range(8)] == [(0.0, False)] * 8
    assert step(7.0) == (1.0, True)
    assert optimizer.steps == 9
    state = json.loads(json.dumps(optimizer.state_dict()))
    again = AdamW([("w", parameter)], optimizer.config)
    again.load_state_dict(state)
    assert again._losses == optimizer._losses
    assert [step(7.0)[0] for _ in range(9)] == [1.0] * 7 + [0.0] * 2  # a level that stays becomes the level


@pytest.mark.promise("13 too little memory: one line with the settings that ask for less")
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_settings(tmp_path, tokenizer, monkeypatch, fault, modality, error):
    recipe = small_recipe(modality, tmp_path, tokenizer)
    session = session_of(recipe)

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(session.parts.learner, "loss", fails)
    with (
        fault(),
        pytest.raises(UserError, match=r"out of memory: .*stream\.batch_size.*value\.batch_size"),
        failures_in_one_line(recipe),
    ):
        session.run()
