"""Rows that cannot be read: named with their place, skipped without moving any other row, or the end of the run."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from streams import resumed

from vpretrain.errors import Unreadable, UserError
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data.source import open_source, with_form
from vpretrain.language.data.stream import LanguageStream, rows_of
from vpretrain.run.skipped import TooManySkipped


def outcomes(config: SourceConfig) -> list[str | tuple[str, str]]:
    """The texts of a source; place and reason of each that cannot be read."""
    found = open_source(config, skips=True).outcomes()
    return [(one.place, one.reason) if isinstance(one, Unreadable) else one.response for one in found]


NO_JSON = "is no JSON (Expecting value, at character 1)"
LOST = "; the rest of the file cannot be read"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xe9"}\nno\n\n[]\n{"a": 5}\n',
         ["1", ("line 2 of rows.jsonl", "is no UTF-8 (byte 8 of line 2 is 0xe9)"), ("line 3 of rows.jsonl", NO_JSON),
          ("line 5 of rows.jsonl", "is no object with fields"), "5"]),
        ("rows.jsonl", b'\xef\xbb\xbf{"a": "\xe9"}\n{"a": 2}',
         [("line 1 of rows.jsonl", "is no UTF-8 (byte 11 of line 1 is 0xe9)"), "2"]),
        ("rows.json", b'[{"a": "\xc3\xa9"},\n {"b": "\xc3\xa9", "a": "\xe9"},\n {"a": 3}]',
         ["é", ("row 2 of rows.json", "is no UTF-8 (byte 20 of line 2 is 0xe9)"), "3"]),
        ("rows.json", b'[{"a": 1}, {"a": 2} {"a": 3}]',
         ["1", "2", ("row 2 of rows.json", "has neither a comma nor the end of the array after it" + LOST)]),
        ("rows.json", b'[{"a": 1}, null, {"a": "\\udc00"}, "x", no, {"a": 7}]',
         ["1", ("row 2 of rows.json", "is no object with fields"),
          ("row 3 of rows.json", "has half a surrogate pair (such as \\ud800), which is no character"), "",
          ("row 5 of rows.json", NO_JSON + LOST)]),
        ("rows.csv", b'a,b\n1,2\n1\n"\xe9\n",1\n"x" y,2\n5,6\n',
         ["1", ("line 3 of rows.csv", "has 1 values for 2 columns"),
          ("line 4 of rows.csv", "is no UTF-8 (byte 2 of line 4 is 0xe9)"),
          ("line 6 of rows.csv", "is no row of a table (',' expected after '\"')"), "5"]),
    ],
)  # fmt: skip
def test_a_broken_row_keeps_its_place_among_the_others(tmp_path, name, content, expected, streaming):
    path = tmp_path / name
    path.write_bytes(content)
    assert outcomes(SourceConfig(path=str(path), text="{a}", streaming=streaming)) == expected
    config = SourceConfig(path=str(path), text="{a}", streaming=streaming, skip=1, limit=1)
    assert outcomes(config) == [expected[1]]  # broken rows count for skip and limit


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_is_broken_as_a_whole_is_one_fault_and_the_others_are_read(tmp_path, streaming):
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(3000))
    cut = gzip.compress(lines)[:-2000]
    (tmp_path / "1.jsonl.gz").write_bytes(cut)
    (tmp_path / "2.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "3.jsonl").write_bytes(b'{"text": "last"}')
    found = outcomes(SourceConfig(path=str(tmp_path), streaming=streaming))
    *texts, first, second, last = found
    assert texts == [str(number) for number in range(len(texts))]
    assert 500 < len(texts) < 3000
    assert first == (
        "1.jsonl.gz",
        f"breaks off after line {len(texts):,} (Compressed file ended before the end-of-stream marker was reached)",
    )
    assert second == ("2.jsonl.gz", "breaks off after line 0 (Not a gzipped file (b'no'))")
    assert last == "last"


def unchecked(texts: list[bytes]) -> pyarrow.Array:
    """Texts as Parquet and Arrow take them: nothing there asks whether they are UTF-8."""
    binary = pyarrow.array(texts, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(binary), binary.buffers())


NO_TEXT = "is no UTF-8 (byte 2 of a value is 0xe9)"


@pytest.fixture
def tables(tmp_path):
    """Two Parquet files with a broken text each, and the outcomes of their rows."""
    for name, texts in (("1", [b"one", b"t\xe9", b"three"]), ("2", [b"four", b"five", b"s\xe9x", b"seven"])):
        table = pyarrow.table({"a": unchecked(texts), "unused": [b"\xff"] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    faults = ("row 2 of 1.parquet", NO_TEXT), ("row 3 of 2.parquet", NO_TEXT)
    return str(tmp_path), ["one", faults[0], "three", "four", "five", faults[1], "seven"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_text_of_parquet_keeps_its_place_among_the_others(tables, streaming):
    path, expected = tables
    config = SourceConfig(path=path, text="{a}", streaming=streaming)
    assert outcomes(config) == expected
    assert outcomes(config.model_copy(update={"skip": 1, "limit": 3})) == expected[1:4]
    some = config.model_copy(update={"exclude": {"a": "three|four"}})
    assert outcomes(some) == [*expected[:2], *expected[4:]]
    with pytest.raises(
        Unreadable, match=r"cannot load .*: row 2 of 1\.parquet is no UTF-8 \(byte 2 .*; check the file"
    ):
        open_source(config) if not streaming else list(open_source(config))


def test_a_broken_text_of_parquet_has_the_same_place_in_shards_and_after_a_resume(tables):
    path, expected = tables
    config = SourceConfig(path=path, text="{a}", streaming=True)
    (first, second) = (open_source(config, shard=shard, shards=2, skips=True).outcomes() for shard in range(2))
    assert [one.place for one in [*first, *second] if isinstance(one, Unreadable)] == [expected[1][0], expected[5][0]]
    source, again = (open_source(config, skips=True) for _ in range(2))
    assert len(list(islice(source.outcomes(), 4))) == 4
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert again.next().response == "five"
    with pytest.raises(Unreadable, match=r"row 3 of 2\.parquet"):
        again.next()
    assert again.next().response == "seven"


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_of_a_binary_column_are_a_fault_only_where_a_template_names_it(tables, streaming):
    config = SourceConfig(path=tables[0], text="{a}{unused}", streaming=streaming, limit=1)
    assert outcomes(config) == [("row 1 of 1.parquet", "is no UTF-8 (byte 1 of a value is 0xff)")]


def test_a_broken_text_of_a_hub_data_set_is_named_by_its_row(monkeypatch):
    def load_dataset(**kwargs):
        found = datasets.Dataset(pyarrow.table({"text": unchecked([b"one", b"t\xe9"])}))
        found.info.builder_name = "arrow"
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert outcomes(SourceConfig(hub="owner/name")) == ["one", ("row 2 of owner/name", NO_TEXT)]


def test_a_text_file_that_is_no_utf8_is_one_fault(tmp_path):
    (tmp_path / "1.txt").write_bytes(b"one\n\xc3\xa9 \xe9\n")
    (tmp_path / "2.txt").write_bytes(b"two")
    expected = [("1.txt", "is no UTF-8 (byte 4 of line 2 is 0xe9)"), "two"]
    assert outcomes(SourceConfig(path=str(tmp_path))) == expected


def test_a_file_that_cannot_be_read_on_is_no_fault_of_its_content(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))

    def failing(self, buffer):
        self.failed = True
        raise ConnectionError("the network is gone")

    monkeypatch.setattr("vpretrain.language.data.text_files._Raw.readinto", failing)
    with pytest.raises(UserError, match="the network is gone") as caught:
        outcomes(SourceConfig(path=str(tmp_path), streaming=True))
    assert not isinstance(caught.value, Unreadable)


@pytest.mark.parametrize("streaming", [False, True])
def test_excluded_rows_and_parts_leave_broken_rows_to_be_told(tmp_path, streaming):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\nno\n{"a": "y"}\n')
    config = SourceConfig(path=str(path), text="{a}", exclude={"a": "x"}, streaming=streaming)
    assert outcomes(config) == [("line 2 of rows.jsonl", NO_JSON), "y"]


def test_what_rows_are_follows_from_those_that_can_be_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('no\n{"prompt": "2+2=", "completion": "4"}\n')
    bare = SourceConfig(path=str(path))
    assert with_form(bare, skips=True).response == "{completion}"
    with pytest.raises(Unreadable, match=r"line 1 of rows\.jsonl"):
        with_form(bare)


FAULTS = {3: b"no", 8: b'{"question": "\xff"}', 17: b"[]"}  # by line, from 1


@pytest.fixture
def broken(tmp_path):
    """A file of 24 rows of which three are broken."""
    rows = [json.dumps({"question": f"number {n} ?", "answer": f"{n}"}).encode() for n in range(1, 25)]
    for line, fault in FAULTS.items():
        rows[line - 1] = fault
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(rows))
    return str(path)


def stream_of(path, tokenizer, *, streaming=True, rank=0, processes=1, **settings):
    source = {"path": path, "streaming": streaming, "prompt": "{question}", "response": "{answer}"}
    shape = {"length": 24, "batch_size": 4, "min_chunk": 4} | settings
    config = StreamConfig(sources=[source], **shape)
    return LanguageStream(config, tokenizer, seed=0, rank=rank, processes=processes)


def read(steps: int, stream: LanguageStream) -> list[str]:
    """The keys of the documents."""
    return [key for _ in range(steps) for batch in stream.next() for row in batch.keys for key in row]


def named(stream) -> list[str]:
    return [entry["place"] for entry in stream.skipped(stream.merge([stream.state_dict()]))]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_all_but_the_broken_rows_come_in_their_order(tmp_path, broken, tokenizer, streaming, shards):
    stream = stream_of(broken, tokenizer, streaming=streaming, shards=shards, packing=False)
    drawn = read(12, stream)
    sound = open_source(SourceConfig(path=broken, prompt="{question}", response="{answer}"), skips=True).outcomes()
    assert set(drawn) == {one.key for one in sound if not isinstance(one, Unreadable)}
    assert sorted(named(stream)) == sorted(f"line {line} of rows.jsonl" for line in FAULTS)  # each once, of two epochs
    (counts,) = stream.left_out(stream.state_dict()).values()
    assert counts["unreadable"] >= len(FAULTS)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_by_other_numbers_of_processes_the_stream_reads_on(broken, tokenizer, streaming, prefetch):
    def opened(rank, processes):
        return stream_of(broken, tokenizer, streaming=streaming, rank=rank, processes=processes, shards=2)

    for whole, cursor in resumed(opened, (1, 2, 4, 2), 3, lambda batch, rows: [batch.ids_BT[rows]], prefetch):
        assert whole.skipped(cursor) == whole.skipped(whole.state_dict())
        assert whole.left_out(cursor) == whole.left_out(whole.state_dict())
    assert len(whole.skipped(cursor)) == len(FAULTS)


def test_the_stream_stops_at_the_first_if_it_is_told_to(broken, tokenizer):
    for streaming in (False, True):
        with pytest.raises(Unreadable, match=r"cannot load .*rows\.jsonl: line 3 of rows\.jsonl is no JSON .*; check"):
            read(6, stream_of(broken, tokenizer, streaming=streaming, on_error="stop"))


def test_more_than_the_share_stops_the_stream(broken, tokenizer):
    stream = stream_of(broken, tokenizer, max_skipped=0.002)  # of a thousand rows, two
    with pytest.raises(TooManySkipped) as caught:
        read(12, stream)
    assert str(caught.value) == (
        f"{broken}: 3 of 17 rows or images cannot be read, the last: line 17 of rows.jsonl is no object with fields; "
        "mend them, or raise stream.max_skipped=0.002"
    )
    assert [entry["place"] for entry in caught.value.entries] == [f"line {line} of rows.jsonl" for line in FAULTS]
    assert read(24, stream_of(broken, tokenizer, max_skipped=0.003))  # later epochs meet the same three


def test_text_of_the_evaluation_is_never_skipped(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "some text"}\nno\n')
    with pytest.raises(Unreadable, match=r"line 2 of rows\.jsonl"):
        rows_of(SourceConfig(path=str(path)), tokenizer, length=8, tokens=64, batch_size=2, packing=True)
