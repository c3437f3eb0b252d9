"""The arm `mixed-in`: feedback pairs enter learner batches in their share, problems of the evaluation never."""

from __future__ import annotations

import pytest
from sessions import assert_bit_equal, trajectory
from worlds import sums, tiny_recipe, write_jsonl

from vpretrain.language.assemble import assemble
from vpretrain.language.data.stream import HELD_BACK


def rows(parts, steps):
    """(domain, keys, tokens) of the rows of so many steps."""
    batches = [batch for _ in range(steps) for batch in parts.stream.next()]
    return [(b.domains[r], b.keys[r], b.ids_BT[r].tolist()) for b in batches for r in range(len(b.domains))]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_feedback_pairs_have_their_share_of_the_rows_and_evaluation_problems_none(tmp_path, tokenizer, share):
    # The stream's own file holds problems of both; only the feedback's sources may show the feedback's.
    recipe = tiny_recipe(tmp_path, tokenizer, arm="mixed-in", control={"mixed_in": share})
    write_jsonl(tmp_path / "stream.jsonl", sums(40, 1) + sums(12, 2) + sums(10, 3))
    parts = assemble(recipe)
    evaluation = parts.held_back - parts.feedback.keys
    drawn = rows(parts, 300)
    mixed = [set(keys) & parts.feedback.keys for _, keys, _ in drawn]
    assert sum(map(bool, mixed)) / len(drawn) == pytest.approx(share, abs=0.05)
    assert all(set(keys) <= parts.feedback.keys for (_, keys, _), own in zip(drawn, mixed, strict=True) if own)
    assert set().union(*mixed) == parts.feedback.keys
    assert not evaluation & {key for _, keys, _ in drawn for key in keys}
    left_out = parts.left_out(parts.stream.state_dict())
    assert left_out[f"stream {tmp_path / 'stream.jsonl'}"][HELD_BACK] > 0


def test_the_other_rows_are_those_of_one_hot_in_their_order(tmp_path, tokenizer):
    one_hot = assemble(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    mixed = assemble(tiny_recipe(tmp_path, tokenizer, arm="mixed-in", control={"mixed_in": 0.3}))
    theirs, ours = rows(one_hot, 60), rows(mixed, 60)
    ours = [row for row in ours if not set(row[1]) & mixed.feedback.keys]
    assert len(ours) < len(theirs)
    for domain in ("sums", "text"):  # one source each
        a, b = ([row for row in side if row[0] == domain] for side in (ours, theirs))
        assert min(len(a), len(b)) > 10
        assert all(x == y for x, y in zip(a, b, strict=False))


def test_its_targets_are_one_hot_and_it_has_no_meta_update(tmp_path, tokenizer):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    nearly_none, _, parts = trajectory(tiny_recipe(tmp_path, tokenizer, arm="mixed-in", control={"mixed_in": 1e-9}))
    assert parts.meta is None
    assert_bit_equal(one_hot, nearly_none)
