"""Feedback: pairs by domain, each epoch whole, roles apart."""

from __future__ import annotations

import pytest
import torch
from models import tiny_model
from worlds import sums, write_jsonl

from vpretrain.errors import UserError
from vpretrain.language.config import FeedbackConfig, SourceConfig
from vpretrain.language.data.encode import PROMPT_FILLS
from vpretrain.language.data.feedback import LanguageFeedback, check_roles, pairs, problems
from vpretrain.language.model.learner import LanguageLearner

PAIR = {"prompt": "{question} ", "response": "{answer}"}


def make(tokenizer, *sources, packing=False, average="tokens", rank=0, processes=1, **settings) -> LanguageFeedback:
    config = FeedbackConfig(**({"length": 48, "batch_size": 2} | settings), sources=list(sources))
    kwargs = {"packing": packing, "average": average, "rank": rank, "processes": processes}
    return LanguageFeedback(config, tokenizer, seed=0, **kwargs)


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "pairs.jsonl", sums(10, 1))


def test_domains_have_their_own_batches_and_weights_that_sum_to_one(tokenizer, path):
    feedback = make(
        tokenizer,
        {"path": path, "domain": "math", "limit": 4, "weight": 3, **PAIR},
        {"path": path, "domain": "code", "skip": 4, "weight": 1, **PAIR},
    )
    batches = feedback.next()
    assert {domain: batch.domains for domain, batch in batches.items()} == {
        "math": ("math",) * 2,
        "code": ("code",) * 2,
    }
    assert feedback.weights == {"math": 0.75, "code": 0.25}


def test_pairs_have_equal_weight_where_the_loss_is_averaged_over_examples(tokenizer, tmp_path):
    rows = [{"question": "2+2=", "answer": "4"}, {"question": "2+2=", "answer": "four, as everyone knows"}]
    source = {"path": write_jsonl(tmp_path / "two.jsonl", rows), "domain": "math", **PAIR}
    batch = make(tokenizer, source, average="examples").next()["math"]
    assert batch.weights_BT.sum(1).tolist() == pytest.approx([1, 1])
    assert len(set((batch.weights_BT > 0).sum(1).tolist())) == 2


def test_an_epoch_shows_every_pair_once_and_goes_on_at_its_cursor(tokenizer, path):
    feedback = make(tokenizer, {"path": path, "domain": "math", **PAIR})
    n = len(feedback.keys)
    drawn = [key for _ in range(n) for row in feedback.next()["math"].keys for key in row]
    assert len(set(drawn[:n])) == n
    assert sorted(drawn[:n]) == sorted(drawn[n:])
    again = make(tokenizer, {"path": path, "domain": "math", **PAIR})
    again.load_state_dict(feedback.state_dict())
    assert again.next()["math"].keys == feedback.next()["math"].keys


@pytest.mark.parametrize("packing", [False, True])
def test_processes_deal_out_the_pairs_of_a_batch(tokenizer, path, packing):
    source = {"path": path, "domain": "math", **PAIR}
    whole = make(tokenizer, source, batch_size=5)
    parts = [make(tokenizer, source, batch_size=5, packing=packing, rank=rank, processes=2) for rank in range(2)]
    for _ in range(3):
        pairs_of = [key for row in whole.next()["math"].keys for key in row]
        dealt = [sorted(key for row in part.next()["math"].keys for key in row) for part in parts]
        assert dealt == [sorted(pairs_of[0::2]), sorted(pairs_of[1::2])]
    assert parts[0].state_dict() == parts[1].state_dict() == whole.state_dict()
    with pytest.raises(UserError, match=r"feedback.batch_size=2 is below the 4 processes: raise it"):
        make(tokenizer, source, processes=4)


def test_pairs_that_share_rows_have_the_same_loss_and_fewer_tokens(tokenizer, tmp_path):
    rows = [{"question": f"{n} ?", "answer": "yes " * n} for n in (1, 2, 3, 5, 8, 13)]
    source = {"path": write_jsonl(tmp_path / "uneven.jsonl", rows), "domain": "math", **PAIR}
    apart, together = (
        make(tokenizer, source, packing=packing, batch_size=6, length=80).next()["math"] for packing in (False, True)
    )
    assert sorted(key for row in apart.keys for key in row) == sorted(key for row in together.keys for key in row)
    assert together.units < apart.units
    assert together.ids_BT.shape[1] <= 80
    assert len(together.domains) < 6
    learner = LanguageLearner(tiny_model().eval())
    at = {name: p.detach() for name, p in learner.named_parameters()}
    torch.testing.assert_close(learner.evaluate(apart, at), learner.evaluate(together, at))


def test_pairs_may_be_streamed(path):
    streamed, _ = pairs(SourceConfig(path=path, streaming=True, **PAIR))
    stored, _ = pairs(SourceConfig(path=path, **PAIR))
    assert [pair.key for pair in streamed] == [pair.key for pair in stored]
    assert len(problems([SourceConfig(path=path, **PAIR)] * 2, 3)[0]) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_that_lack_a_part_or_have_no_room_are_left_out_and_counted(tokenizer, tmp_path, streaming):
    rows = [{"question": "0 ?", "answer": None}, *sums(3, 1), {"question": "1 ?"}, {"question": "", "answer": "2"}]
    path = write_jsonl(tmp_path / "flawed.jsonl", [*rows, {"question": "long " * 20, "answer": "3"}, *sums(2, 2)])
    source = SourceConfig(path=path, domain="math", streaming=streaming, **PAIR)
    lacking = {"response null": 1, "response missing": 1, "prompt empty": 1}
    feedback = make(tokenizer, source)
    assert feedback.left_out == {path: lacking | {PROMPT_FILLS: 1}}
    drawn = {key for _ in range(3) for row in feedback.next()["math"].keys for key in row}
    assert len(drawn) == 5
    first, none_yet = problems([source], 2)
    assert [pair.fields for pair in first] == sums(3, 1)[:2]
    assert none_yet == {path: {"response null": 1}}
    assert problems([source], 100)[1] == {path: lacking}
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"question": "0 ?", "answer": None}] * 3)
    with pytest.raises(UserError, match=r"no row has both prompt and response: 3 \(response null\); check the fields"):
        make(tokenizer, {"path": empty, **PAIR})


def test_wrong_feedback_is_refused(tokenizer, path, tmp_path):
    with pytest.raises(UserError, match=r"feedback 'math': no pair has a solution token within feedback.length=8"):
        make(tokenizer, {"path": path, "domain": "math", **PAIR}, length=8)
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "words"}])
    with pytest.raises(UserError, match="need pairs: give prompt and response"):
        make(tokenizer, {"path": text})


def test_feedback_and_evaluation_must_not_share_a_problem():
    check_roles(frozenset("ab"), frozenset("cd"))
    with pytest.raises(UserError, match="1 problems are in both feedback and evaluation: keep them apart"):
        check_roles(frozenset("ab"), frozenset("bc"))
