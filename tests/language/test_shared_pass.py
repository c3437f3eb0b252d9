"""The blocks below S run once a batch, and nothing else changes."""

from __future__ import annotations

import json

import pytest
import torch
from models import FAMILIES, FURTHER_FAMILIES, random_batch, tiny_model
from numerics.test_engines import gradient_by, setting
from worlds import tiny_recipe

from vpretrain import distributed
from vpretrain.language.assemble import assemble
from vpretrain.language.model.frozen_blocks import FrozenBlocksCache
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.shared_pass import PreparedBatch, SharedPass
from vpretrain.method.subset import alignment_subset, blocks_of
from vpretrain.run import run_recipe


def subset(learner, spec):
    names = alignment_subset(learner.module, spec)
    return {name: p.detach() for name, p in learner.named_parameters() if name in names}


def passes(learner) -> list[int]:
    """The numbers of the blocks that compute, in their order."""
    ran = []
    for number, block in enumerate(blocks_of(learner.module)[1]):
        inner = next(child for child in block.children())
        inner.register_forward_pre_hook(lambda module, arguments, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER_FAMILIES])
def test_a_second_pass_runs_the_upper_blocks_alone_and_gives_the_same(family):
    learner = LanguageLearner(tiny_model(family))
    at = subset(learner, "last-1")
    batch = random_batch()
    with learner.meta_mode(), torch.no_grad():
        ran = passes(learner)
        whole = learner.forward(batch, at).hidden_BTD
        assert set(ran) == {0, 1, 2}
        prepared = learner.prepare(batch, at)
        assert torch.equal(learner.forward(prepared, at).hidden_BTD, whole)
        ran.clear()
        assert torch.equal(learner.forward(prepared, at).hidden_BTD, whole)
        assert set(ran) == {2}
        ran.clear()
        moved = {name: p + 0.1 for name, p in at.items()}
        expected = learner.forward(batch, moved).hidden_BTD
        assert set(ran) == {0, 1, 2}
        torch.testing.assert_close(learner.forward(prepared, moved).hidden_BTD, expected)
        assert not torch.allclose(expected, whole)
    assert all("forward" not in vars(block) for block in blocks_of(learner.module)[1])


def test_another_batch_and_other_rows_have_passes_of_their_own():
    learner = LanguageLearner(tiny_model().eval())
    at = subset(learner, "last-1")
    prepared = learner.prepare(random_batch(), at)
    with torch.no_grad():
        learner.forward(prepared, at)
        part = prepared.rows([1])
        assert not isinstance(part, PreparedBatch)
        torch.testing.assert_close(learner.forward(part, at).hidden_BTD, learner.forward(prepared, at).hidden_BTD[1:2])
        other = learner.prepare(random_batch(seed=5), at)
        assert not torch.equal(learner.forward(other, at).hidden_BTD, learner.forward(prepared, at).hidden_BTD)


@pytest.mark.parametrize("spec", ["all", "name:norm", "name:embed", "last-3"])
def test_nothing_is_kept_where_s_reaches_down(spec):
    learner = LanguageLearner(tiny_model())
    assert not isinstance(learner.prepare(random_batch(), subset(learner, spec)), PreparedBatch)


def test_a_model_whose_upper_blocks_look_further_down_runs_whole():
    model = tiny_model()
    last, first = model.model.layers[2], model.model.layers[0]
    seen = []
    first.register_forward_hook(lambda block, arguments, output: seen.append(output))
    last.register_forward_pre_hook(lambda block, arguments: (arguments[0] + seen.pop() if seen else arguments[0],))
    learner = LanguageLearner(model)
    assert not isinstance(learner.prepare(random_batch(), subset(learner, "last-1")), PreparedBatch)


def test_somebody_elses_forward_stays():
    model = tiny_model()
    block = model.model.layers[0]
    block.forward = forward = block.forward  # as accelerate hooks do
    cache = FrozenBlocksCache([block])
    for _ in range(2):
        with cache.used():
            model(torch.arange(5)[None])
    assert vars(block)["forward"] is forward


@pytest.mark.parametrize("engine", ["jvp", "finite_difference", "double_backward"])
def test_every_engine_runs_the_lower_blocks_once(engine):
    learner, *rest = setting("llama", "last-1")
    learner.prepare(random_batch(), rest[1])  # the first time it makes sure of the model
    ran = passes(learner)
    gradient_by(engine, "cosine", learner, *rest)
    assert ran.count(0) == 1
    assert ran.count(2) == {"jvp": 2, "finite_difference": 3, "double_backward": 1}[engine]


def ahead(learner, batch, spec="last-1"):
    """A part of the batch, prepared while the learner looks ahead."""
    at = subset(learner, spec)
    with learner.meta_mode(), learner.looking_ahead(batch):
        return learner.prepare(batch.restrict(rows=2, length=20), at), at


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER_FAMILIES])
def test_looking_ahead_shares_the_learners_own_pass(family):
    learner = LanguageLearner(tiny_model(family), top_k=3)
    batch = random_batch(3, 24)
    expected = learner.forward(batch)
    part, at = ahead(learner, batch)
    if family == "gpt2":  # dropout: a meta step goes without, so the passes differ
        assert part.cache.output is None
        return
    with learner.meta_mode(), torch.no_grad():
        alone = learner.forward(batch.rows([0, 1], 20), at).hidden_BTD
        torch.testing.assert_close(learner.forward(part, at).hidden_BTD, alone, rtol=1e-4, atol=1e-5)
        ran = passes(learner)
        learner.forward(part, at)
    assert set(ran) == {2}
    ran.clear()
    state = learner.forward(batch)
    assert ran == []  # it was made already
    assert torch.equal(state.hidden_BTD, expected.hidden_BTD)
    assert torch.equal(state.logits.z_NK, expected.logits.z_NK)
    names, parameters = zip(*learner.named_parameters(), strict=True)
    found, wanted = (torch.autograd.grad(s.logits.mean_lse, parameters, allow_unused=True) for s in (state, expected))
    for name, one, other in zip(names, found, wanted, strict=True):
        assert (one is None and other is None) or torch.equal(one, other), name
    learner.forward(batch)
    assert set(ran) == {0, 1, 2}  # once


@pytest.mark.parametrize("change", ["theta", "another batch", "no gradient"])
def test_a_pass_that_was_made_ahead_is_not_used_for_anything_else(change):
    learner = LanguageLearner(tiny_model())
    batch = random_batch()
    ahead(learner, batch)
    ran = passes(learner)
    if change == "theta":
        with torch.no_grad():
            next(learner.module.parameters()).mul_(1.01)
        learner.forward(batch)
    elif change == "another batch":
        learner.forward(random_batch())
    else:
        with torch.no_grad():
            learner.forward(batch)
    assert set(ran) == {0, 1, 2}


def test_nothing_is_made_ahead_outside_of_a_meta_update():
    batch = random_batch()
    learner = LanguageLearner(tiny_model())
    at = subset(learner, "last-1")
    assert learner.prepare(batch.restrict(rows=2, length=20), at).cache.output is None
    with learner.meta_mode(), learner.looking_ahead(random_batch(seed=7)):
        assert learner.prepare(batch.restrict(rows=2, length=20), at).cache.output is None
    first, second = batch.rows([0]), batch.rows([1])
    with learner.meta_mode(), learner.looking_ahead(first):  # which has only a part of the rows
        assert learner.prepare(first.restrict(more=[second], rows=2, length=20), at).cache.output is None
    part, _ = ahead(learner, batch)
    assert part.cache.output is not None
    learner.forward(random_batch(seed=7))
    assert learner.shared_pass._ahead is None  # whatever comes next, the pass is not kept


def test_of_several_processes_all_make_the_pass_ahead_or_none(monkeypatch):
    """Also one whose rows of the meta batch are of a later micro-batch: DDP's passes communicate."""
    learner, batch = LanguageLearner(tiny_model()), random_batch()
    at, first, second = subset(learner, "last-1"), batch.rows([0]), batch.rows([1])
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with learner.meta_mode(), learner.looking_ahead(first):
        assert learner.prepare(second.restrict(rows=2, length=20), at).cache.output is None
    assert learner.shared_pass.take(first) is not None


@pytest.mark.parametrize("bf16", [False, True])
def test_a_pass_ahead_that_no_step_takes_has_the_same_lower_states_and_is_not_kept(bf16):
    batch, below = random_batch(3, 24), {}
    for taken in (True, False):
        learner = LanguageLearner(tiny_model(), bf16=bf16)
        learner.shared_pass.taken = taken
        part, _ = ahead(learner, batch)
        below[taken] = part.cache.output
        assert (learner.shared_pass._ahead is not None) == taken
    assert torch.equal(below[True], below[False])


@pytest.mark.parametrize(("arm", "taken"), [("v", True), ("selection", False), ("token-weights", False)])
def test_a_step_over_chosen_rows_or_with_other_weights_takes_no_pass_ahead(tmp_path, tokenizer, arm, taken):
    assert assemble(tiny_recipe(tmp_path, tokenizer, arm=arm)).learner.shared_pass.taken == taken


def test_in_bf16_only_what_lies_below_s_is_rounded():
    learners = {bf16: LanguageLearner(tiny_model(), bf16=bf16) for bf16 in (False, True)}
    batch = random_batch(3, 24)
    states = {}
    for bf16, learner in learners.items():
        part, at = ahead(learner, batch)
        with learner.meta_mode(), torch.no_grad():
            states[bf16] = part.cache.output, learner.forward(part, at)
    (below, state), (rounded, near) = states[False], states[True]
    assert rounded.dtype == near.hidden_BTD.dtype == torch.float32
    assert not torch.equal(below, rounded)
    torch.testing.assert_close(below, rounded, rtol=0.05, atol=0.02)
    torch.testing.assert_close(state.hidden_BTD, near.hidden_BTD, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("arm", ["v-paper", "selection"])
@pytest.mark.parametrize("engine", ["jvp", "double_backward"])
def test_a_run_that_looks_ahead_ends_as_one_that_does_not(tmp_path, tokenizer, monkeypatch, arm, engine):
    def losses(name):
        value = {"every_steps": 1, "batch_size": 2, "length": 40, "engine": engine}
        run_recipe(tiny_recipe(tmp_path, tokenizer, name=name, arm=arm, value=value, stream={"accumulation": 2}))
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [(line["loss"], line.get("value", 0.0)) for line in map(json.loads, lines)]

    together = losses("together")
    monkeypatch.setattr(SharedPass, "draws_nothing", False)
    for ours, theirs in zip(together, losses("apart"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
