"""Feedback gradients that serve several updates, and designers that start where an earlier run's ended."""

from __future__ import annotations

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain import UserError, run_recipe
from vpretrain.errors import NonFinite, Paused
from vpretrain.language.assemble import assemble
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.vision.assemble import assemble as assemble_vision


def gradients(recipe, count):
    """What g_down an engine gets in each of the first meta updates."""
    parts, seen = assemble(recipe), []
    engine = parts.meta.engine
    parts.meta.engine = lambda problem: seen.append(problem.g_down) or engine(problem)
    batches = parts.stream.next()
    for _ in range(count):
        parts.meta(batches)
    return seen


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_a_warm_started_designer_is_that_of_the_earlier_run(tmp_path, tokenizer, modality):
    make = {
        "language": lambda **c: tiny_recipe(tmp_path, tokenizer, **c),
        "vision": lambda **c: vision_recipe(tmp_path, **c),
    }[modality]
    first = make(name="first", arm="v-paper", budget={"steps": 3})
    run_recipe(first)
    groups, _ = load_checkpoint(checkpoints(first.directory / "checkpoints")[-1])
    recipe = make(arm="v-paper", designer={"warm_start": str(first.directory)})
    designer = {"language": assemble, "vision": assemble_vision}[modality](recipe).designer
    cold = {"language": assemble, "vision": assemble_vision}[modality](make(arm="v-paper")).designer
    for (name, phi), other in zip(designer.named_parameters(), cold.parameters(), strict=True):
        assert torch.equal(phi, groups["designer"][name]), name
        assert not torch.equal(phi, other) or not other.any()


def test_a_start_that_does_not_fit_is_refused(tmp_path, tokenizer):
    plain = tiny_recipe(tmp_path, tokenizer, name="plain", arm="one-hot", budget={"steps": 1})
    run_recipe(plain)
    run_recipe(tiny_recipe(tmp_path, tokenizer, name="first", arm="v-paper", budget={"steps": 1}))
    for run, changes, words in (
        (plain.directory, {}, "no checkpoint with a designer"),
        (tmp_path / "nothing", {}, "no checkpoint with a designer"),
        (tmp_path / "runs/first", {"layers": 2}, "another shape"),
    ):
        with pytest.raises(UserError, match=words):
            assemble(tiny_recipe(tmp_path, tokenizer, arm="v-paper", designer={"warm_start": str(run), **changes}))


def test_one_feedback_batch_may_serve_several_updates(tmp_path, tokenizer):
    alone = gradients(tiny_recipe(tmp_path, tokenizer, arm="v-paper"), 4)
    shared = gradients(tiny_recipe(tmp_path, tokenizer, arm="v-paper", value={"feedback_every": 3}), 4)
    for name in alone[0]:
        for update in range(3):
            assert torch.equal(shared[update][name], alone[0][name])
        torch.testing.assert_close(shared[3][name], alone[1][name])
    assert any(not torch.allclose(alone[0][name], alone[1][name]) for name in alone[0])


def test_a_resumed_run_goes_on_with_the_feedback_gradient_it_had(tmp_path, tokenizer):
    value = {"every_steps": 1, "batch_size": 2, "length": 48, "feedback_every": 3, "strength": 1.0}
    whole = tiny_recipe(tmp_path, tokenizer, name="whole", value=value, budget={"steps": 6})
    assert run_recipe(whole).meta_updates == 5  # all but the one before the first step
    parts = whole.model_copy(update={"name": "parts"})
    with pytest.raises(Paused):
        run_recipe(parts, until=0.67)  # after the fourth update, the first of a batch that serves two more
    assert load_checkpoint(checkpoints(parts.directory / "checkpoints")[-1])[0]["feedback-gradients"]
    assert run_recipe(parts, resume=True).meta_updates == 5
    ends = [load_checkpoint(checkpoints(recipe.directory / "checkpoints")[-1])[0] for recipe in (whole, parts)]
    for name, theta in ends[0]["learner"].items():
        assert torch.equal(theta, ends[1]["learner"][name]), name


def test_a_meta_update_raises_the_value_of_its_own_problem(tmp_path, tokenizer):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v-paper", designer={"lr": 3e-3}))
    engine, seen = parts.meta.engine, []
    parts.meta.engine = lambda problem: seen.append(problem) or engine(problem)
    before = parts.meta(parts.stream.next())["value"]
    with parts.learner.meta_mode():
        after = engine(seen[0]).value
    assert float(after) > before


def test_a_gradient_of_feedback_is_not_kept_over_a_pause(tmp_path, tokenizer):
    """A tilt that is given up makes updates idle; the first after them would follow what is many steps old."""
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", value={"feedback_every": 9, "strength": "auto"}))
    meta, batches = parts.meta, parts.stream.next()
    meta.strength.next = 100  # no judgement
    drawn = []
    for beta in (1.0, 1.0, 0.0, 1.0):
        meta.strength.beta = beta
        meta(batches)
        drawn.append(parts.feedback.batches_drawn)
    assert drawn == [1, 1, 1, 2]


def test_a_refused_gradient_of_feedback_leaves_the_direction(tmp_path, tokenizer, monkeypatch):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", value={"strength": 1.0}))
    batches = parts.stream.next()
    parts.meta(batches)
    before = dict(parts.meta.direction)
    gradient = parts.learner.gradient
    monkeypatch.setattr(parts.learner, "gradient", lambda *a: {name: g * torch.nan for name, g in gradient(*a).items()})
    with pytest.raises(NonFinite, match="g_down is nan"):
        parts.meta(batches)
    assert all(torch.equal(parts.meta.direction[name], u) for name, u in before.items())
