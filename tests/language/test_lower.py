"""The blocks below S run once a batch, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, FURTHER_FAMILIES, random_batch, tiny_model
from numerics.test_engines import gradient_by, setting

from vpretrain.language.learner import LanguageLearner
from vpretrain.language.lower import Lower
from vpretrain.subset import alignment_subset, blocks_of


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
        assert part.lower is None
        torch.testing.assert_close(learner.forward(part, at).hidden_BTD, learner.forward(prepared, at).hidden_BTD[1:2])
        other = learner.prepare(random_batch(seed=5), at)
        assert not torch.equal(learner.forward(other, at).hidden_BTD, learner.forward(prepared, at).hidden_BTD)


@pytest.mark.parametrize("spec", ["all", "name:norm", "last-3"])
def test_nothing_is_kept_where_s_reaches_down(spec):
    learner = LanguageLearner(tiny_model())
    assert learner.prepare(random_batch(), subset(learner, spec)).lower is None


def test_a_model_whose_upper_blocks_look_further_down_runs_whole():
    model = tiny_model()
    last, first = model.model.layers[2], model.model.layers[0]
    seen = []
    first.register_forward_hook(lambda block, arguments, output: seen.append(output))
    last.register_forward_pre_hook(lambda block, arguments: (arguments[0] + seen.pop() if seen else arguments[0],))
    learner = LanguageLearner(model)
    assert learner.prepare(random_batch(), subset(learner, "last-1")).lower is None


def test_somebody_elses_forward_stays():
    model = tiny_model()
    block = model.model.layers[0]
    block.forward = forward = block.forward  # as accelerate hooks do
    lower = Lower([block])
    for _ in range(2):
        with lower():
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
