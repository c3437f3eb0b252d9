"""The stream: an exact cursor, honest mixtures, packing that loses nothing, and nothing that is held back."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from worlds import sums, write_jsonl

from vpretrain.errors import UserError
from vpretrain.language.config import StreamConfig
from vpretrain.language.data.encode import PROMPT_FILLS
from vpretrain.language.data.example import Example
from vpretrain.language.data.stream import HELD_BACK, LanguageStream, rows_of

PAIR = {"prompt": "{question} ", "response": "{answer}", "domain": "sums"}
WORDS = "the quick brown fox jumps over the lazy dog "


@pytest.fixture
def sources(tmp_path):
    raw = [{"text": f"{i} " + WORDS * (1 + i)} for i in range(6)]
    return {
        "pairs": {"path": write_jsonl(tmp_path / "pairs.jsonl", sums(30, 1)), **PAIR},
        "raw": {"path": write_jsonl(tmp_path / "raw.jsonl", raw), "domain": "text"},
        "raw streamed": {"path": write_jsonl(tmp_path / "raw.jsonl", raw), "domain": "text", "streaming": True},
        "pairs streamed": {"path": write_jsonl(tmp_path / "pairs.jsonl", sums(30, 1)), "streaming": True, **PAIR},
        "generated": {"reasoning_gym": "chain_sum", "size": 20, "options": {"seed": 1}},
    }


def make(sources, tokenizer, *, held_back=frozenset(), seed=0, rank=0, processes=1, **settings):
    config = StreamConfig(**({"length": 40, "batch_size": 3, "min_chunk": 4} | settings), sources=sources)
    return LanguageStream(config, tokenizer, seed=seed, held_back=held_back, rank=rank, processes=processes)


def group(processes, sources, tokenizer, **settings):
    return [make(sources, tokenizer, rank=rank, processes=processes, **settings) for rank in range(processes)]


def left_out(stream) -> Counter:
    """Examples that were left out, by reason."""
    return sum(map(Counter, stream.left_out(stream.state_dict()).values()), Counter())


def dealt_back(streams) -> list:
    """The rows of the next learner step as one process has them."""
    steps = [stream.next() for stream in streams]
    return [
        (row.tolist(), keys)
        for batches in zip(*steps, strict=True)
        for rows in zip(*([*zip(b.ids_BT, b.keys, strict=True)] for b in batches), strict=True)
        for row, keys in rows
    ]


def equal(ours, theirs) -> bool:
    return all(
        torch.equal(a.ids_BT, b.ids_BT) and torch.equal(a.weights_BT, b.weights_BT) and a.keys == b.keys
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("drawn", [0, 1, 5, 17])
@pytest.mark.parametrize("kinds", [["raw"], ["raw streamed"], ["pairs", "raw", "pairs streamed", "generated"]])
def test_a_cursor_goes_on_exactly_also_in_the_middle_of_a_document(sources, tokenizer, kinds, drawn):
    chosen = [sources[kind] for kind in kinds]
    length = 110 if "generated" in kinds else 40
    stream = make(chosen, tokenizer, accumulation=2, length=length)
    for _ in range(drawn):
        stream.next()
    cursor = json.loads(json.dumps(stream.state_dict()))
    if kinds == ["raw"] and drawn:
        assert any(source["waiting"] for source in cursor["shards"]["0"])
    expected = [stream.next() for _ in range(8)]
    again = make(chosen, tokenizer, accumulation=2, length=length)
    again.next()
    again.load_state_dict(cursor)
    assert all(equal(again.next(), batches) for batches in expected)
    assert len(expected[0]) == 2


def test_the_order_follows_from_the_seed(sources, tokenizer):
    chosen = [sources["pairs"], sources["raw"]]
    assert equal(make(chosen, tokenizer).next(), make(chosen, tokenizer).next())
    assert not equal(make(chosen, tokenizer).next(), make(chosen, tokenizer, seed=1).next())


def test_rows_are_drawn_by_weight_and_caps_hold(sources, tokenizer):
    chosen = [sources["pairs"] | {"weight": 0.7, "limit": 5}, sources["raw"] | {"weight": 0.3}]
    stream = make(chosen, tokenizer, batch_size=10)
    batches = [stream.next()[0] for _ in range(100)]
    count = Counter(domain for batch in batches for domain in batch.domains)
    assert count["sums"] / 1000 == pytest.approx(0.7, abs=0.045)  # three standard deviations
    keys = {
        key for batch in batches for row, keys in enumerate(batch.keys) for key in keys if batch.domains[row] == "sums"
    }
    assert len(keys) == 5


def test_packing_keeps_every_token_of_raw_text_but_very_short_ends(sources, tokenizer, tmp_path):
    texts = [WORDS * 2, "tiny", WORDS + "xyz ab", "a b c d e f g h"]
    source = {"path": write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in texts])}
    config = StreamConfig(sources=[source], length=24).sources[0]
    rows = rows_of(config, tokenizer, length=60, tokens=180, batch_size=2, packing=True)
    assert [len(batch.domains) for batch in rows] == [2, 1]
    ids = [i for batch in rows for row in batch.ids_BT.tolist() for i in row]
    tokens = "".join("|" if t == "<eos>" else "" if t == "<pad>" else t for t in tokenizer.convert_ids_to_tokens(ids))
    whole = "|".join([texts[0], texts[2], texts[3], ""])  # "tiny" has fewer tokens than min_chunk = 16
    assert tokens.startswith(whole)


def test_a_pair_that_does_not_fit_into_a_row_begins_the_next_one(sources, tokenizer):
    stream, count = make([sources["pairs"]], tokenizer, length=90), len(sums(30, 1))
    rows = [keys for _ in range(20) for batch in stream.next() for keys in batch.keys]
    seen = [key for keys in rows for key in keys]
    assert all(len(keys) in (2, 3) for keys in rows)
    assert len(set(seen[:count])) == len(set(seen[count : 2 * count])) == count


def test_documents_do_not_see_each_other_and_rows_are_full(sources, tokenizer):
    batch = make([sources["raw"]], tokenizer).next()[0]
    assert batch.ids_BT.shape == (3, 40)
    starts = batch.positions_BT == 0
    assert not (batch.weights_BT[starts] > 0).any()
    assert (batch.weights_BT > 0).float().mean() > 0.8


def test_without_packing_every_row_holds_one_document(sources, tokenizer):
    batch = make([sources["pairs"]], tokenizer, packing=False).next()[0]
    assert all(len(keys) == 1 for keys in batch.keys)
    packed = make([sources["pairs"]], tokenizer, length=90).next()[0]
    assert any(len(keys) > 1 for keys in packed.keys)


def test_average_over_examples_weighs_documents_alike(sources, tokenizer):
    batch = make([sources["pairs"]], tokenizer, average="examples", length=90).next()[0]
    documents = sum(len(keys) for keys in batch.keys)
    assert batch.weight == pytest.approx(documents)


def test_what_feedback_or_evaluation_owns_is_skipped_and_counted(sources, tokenizer):
    own = frozenset(Example("", "", "", pair["question"], "", {}).key for pair in sums(30, 1)[:10])
    stream = make([sources["pairs"]], tokenizer, held_back=own)
    seen = {key for _ in range(60) for batch in stream.next() for row in batch.keys for key in row}
    assert not seen & own
    assert len(seen) == len(sums(30, 1)) - 10
    assert left_out(stream)[HELD_BACK] >= 10
    again = make([sources["pairs"]], tokenizer, held_back=own)
    again.load_state_dict(stream.state_dict())
    assert left_out(again) == left_out(stream)


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_that_lack_a_part_or_have_no_room_are_left_out_and_counted(tokenizer, tmp_path, streaming):
    rows = [{"question": "1 ?", "answer": "2"}, {"question": "2 ?", "answer": None}, {"question": "3 ?"}]
    rows += [{"question": "4 ?", "answer": " "}, {"question": None, "answer": "5"}, {"answer": "6"}]
    rows += [{"question": "long " * 20, "answer": "7"}]
    source = {"path": write_jsonl(tmp_path / "pairs.jsonl", rows), "streaming": streaming, **PAIR}
    stream = make([source], tokenizer, packing=False)
    keys = {key for _ in range(7) for batch in stream.next() for row in batch.keys for key in row}
    assert keys == {Example("", "", "", "1 ?", "", {}).key}
    found = stream.left_out(json.loads(json.dumps(stream.state_dict())))
    reasons = ("response null", "response missing", "response empty", "prompt null", "prompt missing", PROMPT_FILLS)
    assert found.keys() == {source["path"]}
    assert found[source["path"]].keys() == set(reasons)
    if streaming:  # the first row comes at once, each further one after the six others
        assert set(found[source["path"]].values()) == {20}
    again = make([source], tokenizer, packing=False)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert left_out(again) == left_out(stream)


def test_raw_text_that_is_empty_or_very_short_is_left_out_and_counted(tokenizer, tmp_path):
    rows = [{"text": "a b c d e f g h"}, {"text": ""}, {"text": None}, {"other": 1}, {"text": "ab"}]
    stream = make([{"path": write_jsonl(tmp_path / "t.jsonl", rows), "streaming": True}], tokenizer)
    stream.next()
    found = left_out(stream)
    assert found.keys() == {"text empty", "text null", "text missing", "shorter than min_chunk"}
    assert len(set(found.values())) == 1


def test_a_stream_without_any_target_ends_with_a_remedy(tokenizer, tmp_path):
    rows = [{"question": "long " * 20, "answer": "4"}]
    source = {"path": write_jsonl(tmp_path / "long.jsonl", rows), **PAIR}
    with pytest.raises(UserError, match=r"prompts fill stream.length=40"):
        make([source], tokenizer).next()


MIXTURE = ["pairs", "raw", "raw streamed", "pairs streamed"]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_processes_deal_out_the_same_rows_whatever_their_number_and_however_often_it_changes(
    sources, tokenizer, shards
):
    chosen = [sources[kind] for kind in MIXTURE]
    settings = {"batch_size": 4, "accumulation": 2, "shards": shards}
    whole = group(1, chosen, tokenizer, **settings)
    streams = group(1, chosen, tokenizer, **settings)
    for processes in (2, 1, 4, 2, 4, 1):
        cursor = json.loads(json.dumps(streams[0].merge([stream.state_dict() for stream in streams])))
        streams = group(processes, chosen, tokenizer, **settings)
        for stream in streams:
            stream.load_state_dict(cursor)
        assert streams[0].merge([stream.state_dict() for stream in streams]) == cursor
        for _ in range(3):
            assert dealt_back(streams) == dealt_back(whole)


def test_a_process_reads_only_the_shards_that_its_rows_come_from(sources, tokenizer):
    read = {
        (shards, processes): [
            set(stream.state_dict()["shards"])
            for stream in group(processes, [sources["pairs"]], tokenizer, batch_size=4, shards=shards)
        ]
        for shards in (1, 2, 4)
        for processes in (2, 4)
    }
    assert read[1, 2] == [{"0"}, {"0"}]
    assert read[2, 2] == [{"0"}, {"1"}]
    assert read[4, 2] == [{"0", "2"}, {"1", "3"}]
    assert read[2, 4] == [{"0"}, {"1"}, {"0"}, {"1"}]
    assert read[4, 4] == [{"0"}, {"1"}, {"2"}, {"3"}]


@pytest.mark.parametrize("kind", ["pairs", "pairs streamed"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_an_epoch_over_all_shards_shows_each_example_once(sources, tokenizer, kind, shards):
    count = len(sums(30, 1))
    stream = make([sources[kind]], tokenizer, batch_size=4, shards=shards, packing=False, accumulation=count)
    rows = [keys[0] for batch in stream.next() for keys in batch.keys]
    assert len(set(rows[:count])) == count
    if kind == "pairs streamed":  # each shard has its own part of the file, over and over
        for shard in range(shards):
            mine, length = rows[shard::shards], len(range(shard, count, shards))
            assert mine[length : 2 * length] == mine[:length]
    else:
        assert len(set(rows[count : 2 * count])) == count
        assert rows[count : 2 * count] != rows[:count]


def test_examples_held_back_are_counted_once_whatever_the_processes(sources, tokenizer):
    own = frozenset(Example("", "", "", pair["question"], "", {}).key for pair in sums(30, 1)[:10])
    settings = {"batch_size": 4, "held_back": own, "shards": 2}
    (one,) = group(1, [sources["pairs"]], tokenizer, **settings)
    streams = group(4, [sources["pairs"]], tokenizer, **settings)
    for _ in range(20):
        one.next()
        dealt_back(streams)
    merged = make([sources["pairs"]], tokenizer, **settings)
    merged.load_state_dict(merged.merge([stream.state_dict() for stream in streams]))
    assert left_out(merged) == left_out(one)
    assert left_out(one)[HELD_BACK] > 0
    assert sum(map(left_out, streams), Counter()) == left_out(one) + left_out(one)  # each shard is read twice


def test_cursors_of_different_steps_are_not_merged(sources, tokenizer):
    ahead, behind = group(2, [sources["pairs"]], tokenizer, batch_size=4)
    ahead.next()
    with pytest.raises(AssertionError, match="not equally far"):
        ahead.merge([ahead.state_dict(), behind.state_dict()])


def test_what_cannot_be_shared_out_is_refused(sources, tokenizer):
    with pytest.raises(UserError, match=r"stream.batch_size=3 is no multiple of the 2 processes: use 2 or 4"):
        make([sources["pairs"]], tokenizer, batch_size=3, processes=2)
    with pytest.raises(UserError, match=r"stream.batch_size=3 is no multiple of the 4 processes: use 4$"):
        make([sources["pairs"]], tokenizer, batch_size=3, processes=4)
    with pytest.raises(ValueError, match="shards=2 does not divide batch_size=3"):
        make([sources["pairs"]], tokenizer, batch_size=3, shards=2)
