"""The retention guard in a run: off it is not there, on it keeps to its rule, and its text is nobody else's."""

from __future__ import annotations

import json

import pytest
import torch
from test_arms import assert_bit_equal, trajectory
from worlds import sums, tiny_recipe, write_jsonl

from vpretrain.errors import UserError
from vpretrain.language.assemble import assemble
from vpretrain.value import gradient, inner, norm

PAIR = {"prompt": "{question} ", "response": "{answer}"}


@pytest.fixture
def guard(tmp_path):
    """A guard over general text."""
    texts = [{"text": f"{i} birds sang in the old garden at dawn " * 3} for i in range(30)]
    return {"length": 40, "batch_size": 2, "sources": [{"path": write_jsonl(tmp_path / "general.jsonl", texts)}]}


def keys_of(parts, count: int = 64) -> set[str]:
    return {key for n in range(count) for row in parts.meta.general(n).keys for key in row}


def test_every_meta_update_keeps_the_direction_from_raising_the_general_loss(tmp_path, tokenizer, guard):
    value = {"align": "dot", "every_steps": 1, "batch_size": 2, "length": 48}
    # Noise in place of the feedback works against the general text every other time.
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="random-feedback", guard=guard, value=value))
    active = []
    for number in range(8):
        with parts.learner.meta_mode():
            general = parts.meta.general(number)
            g_gen = gradient(lambda at, batch=general: parts.learner.evaluate(batch, at), parts.meta.at())
        record = parts.meta(parts.stream.next())
        active.append(record["guard_active"])
        assert record["guard_active"] == (record["general_alignment"] < 0)
        assert -1 <= record["general_alignment"] <= 1
        u = parts.meta.direction
        cosine = float(inner(u, g_gen, None) / (norm(u) * norm(g_gen)))
        assert cosine == pytest.approx(max(0.0, record["general_alignment"]), abs=1e-5)
    assert set(active) == {0.0, 1.0}


def test_it_is_off_by_default_and_changes_v_alone(tmp_path, tokenizer, guard):
    def run(**changes):
        recipe = tiny_recipe(tmp_path, tokenizer, **changes)
        parameters, _, parts = trajectory(recipe)
        line = json.loads((recipe.directory / "metrics.jsonl").read_text().splitlines()[0])
        return parameters, parts, {"guard_active", "general_alignment"} & line.keys()

    _, parts, recorded = run()
    assert parts.meta.general is None
    assert not recorded
    _, _, recorded = run(guard=guard)
    assert recorded == {"guard_active", "general_alignment"}
    assert_bit_equal(run(arm="one-hot")[0], run(arm="one-hot", guard=guard)[0])


def test_its_text_is_no_problem_of_feedback_or_evaluation_and_no_retention_text(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", sums(20, 7) + sums(12, 2) + sums(10, 3))
    texts = [{"text": f"{i} birds sang in the old garden at dawn"} for i in range(12)]
    path = write_jsonl(tmp_path / "general.jsonl", texts)
    evaluation = recipe.evaluation.model_dump() | {"retention": [{"path": path, "limit": 4}], "retention_tokens": 144}
    guard = {"length": 48, "batch_size": 2, "sources": [{"path": pairs, **PAIR}, {"path": path}]}
    parts = assemble(tiny_recipe(tmp_path, tokenizer, guard=guard, evaluation=evaluation))
    used = keys_of(parts)
    retention = {key for batch in parts.evaluate.func.retention for row in batch.keys for key in row}
    assert len(retention) >= 3
    assert not used & (parts.held_back | retention)
    assert len(used) >= len(sums(20, 7))
    only = write_jsonl(tmp_path / "only.jsonl", sums(12, 2))
    with pytest.raises(UserError, match="feedback and evaluation own them"):
        assemble(tiny_recipe(tmp_path, tokenizer, guard=guard | {"sources": [{"path": only, **PAIR}]}))


def test_its_batches_follow_from_their_number(tmp_path, tokenizer, guard):
    first, second = (assemble(tiny_recipe(tmp_path, tokenizer, guard=guard)).meta.general for _ in range(2))
    second(5)
    assert all(torch.equal(first(n).ids_BT, second(n).ids_BT) for n in range(3))
    assert not torch.equal(first(0).ids_BT, first(1).ids_BT)
