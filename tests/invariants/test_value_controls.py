"""Selection and token weights: what they choose is what the value says, and the loop weighs it as it should."""

from __future__ import annotations

import json

import pytest
import torch
from models import tiny_model
from sessions import assert_bit_equal, trajectory
from worlds import tiny_recipe

from vpretrain import UserError, distributed
from vpretrain.language.assemble import assemble, check_sizes
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.load import load_config
from vpretrain.language.task.construction import Selection, TokenWeights
from vpretrain.method.value import gradient


def after_a_meta_update(tmp_path, tokenizer, average="tokens", **changes):
    """Parts whose value direction is set, and a batch of five rows."""
    stream = {"batch_size": 5, "accumulation": 2, "average": average}
    # All rows of the embedding are candidates: then values are centred under p itself.
    whole = {"top_k": len(tokenizer)}
    recipe = tiny_recipe(tmp_path, tokenizer, stream=stream, designer=whole, **changes)
    parts = assemble(recipe, tiny_model(vocabulary=len(tokenizer)).train())
    batches = parts.stream.next()
    parts.meta(batches)
    return parts, batches


def along_u(parts, loss) -> float:
    """<u, gradient of a loss> by ordinary differentiation."""
    with parts.learner.meta_mode():
        g = gradient(loss, parts.meta.theta_at())
    return float(sum((u * g[name]).sum() for name, u in parts.meta.direction.items()))


@pytest.mark.parametrize("average", ["tokens", "examples"])
@pytest.mark.parametrize("keep", [0.01, 0.4, 1.0])
def test_selection_keeps_the_rows_whose_gradient_aligns_best(tmp_path, tokenizer, keep, average):
    parts, batches = after_a_meta_update(tmp_path, tokenizer, average, arm="selection", control={"keep": keep})
    assert isinstance(parts.construction, Selection)
    for batch in batches + parts.stream.next() + parts.stream.next():
        values = [
            along_u(parts, lambda at, r=row, b=batch: parts.learner.evaluate(b.rows([r]), at)) for row in range(5)
        ]
        best = sorted(sorted(range(5), key=lambda row: -values[row])[: {0.01: 1, 0.4: 2, 1.0: 5}[keep]])
        kept = parts.construction.inputs(batch)
        assert kept.keys == tuple(batch.keys[row] for row in best)
        assert torch.equal(kept.ids_BT, batch.ids_BT[best])


def test_token_weights_are_the_sigmoids_of_the_tokens_own_values(tmp_path, tokenizer):
    parts, (batch, _) = after_a_meta_update(tmp_path, tokenizer, "examples", arm="token-weights")
    assert isinstance(parts.construction, TokenWeights)
    n = len(batch.targets_N)

    def only(t):
        alone_N = torch.full((n,), 1e-12)
        alone_N[t] = 1.0
        return batch.reweighted(alone_N)

    values_N = torch.tensor([along_u(parts, lambda at, t=t: parts.learner.evaluate(only(t), at)) for t in range(n)])
    share_N = batch.weights_N / batch.weights_N.sum()
    factor_N = 2 * torch.sigmoid(values_N / (share_N * values_N**2).sum().sqrt())
    weighted = parts.construction.inputs(batch)
    torch.testing.assert_close(
        weighted.weights_N, batch.weights_N * factor_N / (share_N * factor_N).sum(), rtol=1e-3, atol=1e-6
    )
    assert weighted.weight == pytest.approx(batch.weight, rel=1e-5)
    assert float(factor_N.std()) > 0.1
    assert torch.equal(weighted.predicts_BT, batch.predicts_BT)


@pytest.mark.parametrize("arm", ["selection", "token-weights"])
def test_before_the_first_meta_update_every_row_stays_as_it_is(tmp_path, tokenizer, arm):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm=arm))
    batch = parts.stream.next()[0]
    assert parts.construction.inputs(batch) is batch


def test_a_selection_needs_two_rows_per_process(tmp_path, tokenizer, monkeypatch):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="selection", stream={"batch_size": 4})
    config = load_config(recipe.learner.name)
    for processes in (1, 2, 4):
        monkeypatch.setattr(distributed, "size", lambda processes=processes: processes)
        if processes < 4:
            check_sizes(recipe, config)
    with pytest.raises(UserError, match="batch_size=4 leaves no choice to 4 processes: use at least 8"):
        check_sizes(recipe, config)


def test_selection_that_keeps_all_is_one_hot_bit_for_bit(tmp_path, tokenizer):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    all_rows, _, parts = trajectory(tiny_recipe(tmp_path, tokenizer, arm="selection", control={"keep": 1.0}))
    assert parts.meta.direction is not None
    assert_bit_equal(one_hot, all_rows)


def test_the_rows_that_stay_stand_for_their_micro_batch(tmp_path, tokenizer, monkeypatch):
    stream = {"batch_size": 4, "accumulation": 2}
    recipe = tiny_recipe(tmp_path, tokenizer, arm="selection", stream=stream, budget={"steps": 3})
    kept, losses = [], []
    choose, loss = Selection.inputs, LanguageLearner.loss
    monkeypatch.setattr(Selection, "inputs", lambda *a: kept.append(choose(*a)) or kept[-1])
    monkeypatch.setattr(LanguageLearner, "loss", lambda *a: losses.append(loss(*a)) or losses[-1])
    _, seen, _ = trajectory(recipe)
    line = json.loads((recipe.directory / "metrics.jsonl").read_text().splitlines()[-1])
    weights = [batch.weight for batch in seen[-1]]
    assert weights[0] != weights[1]
    assert [len(batch.domains) for batch in kept[-2:]] == [2, 2]
    expected = sum(w * float(x.detach()) for w, x in zip(weights, losses[-2:], strict=True)) / sum(weights)
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    read = sum(batch.units for step in seen for batch in step)  # by the tangent pass, if not learned from
    assert line["tokens"] == read
