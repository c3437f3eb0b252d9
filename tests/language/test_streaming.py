"""Streams at scale: in any format, files and shards each row comes once an epoch, and a cursor goes on exactly."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from itertools import islice

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from streams import resumed

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data import row_reader
from vpretrain.language.data import source as source_module
from vpretrain.language.data.source import open_source
from vpretrain.language.data.stream import LanguageStream

COUNT = 26
ROWS = [{"question": f"number {i} ?", "answer": f"{i}", "kind": "odd" if i % 2 else "even"} for i in range(COUNT)]
PAIR = {"prompt": "{question}", "response": "{answer}"}
GROUP = 5  # rows of a parquet row group, and about so many of a chunk of JSON
CHUNK = GROUP * len(json.dumps(ROWS[-1]))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """JSON is read in chunks of ten million characters; here of a few rows, so that a file has several."""
    monkeypatch.setattr(row_reader, "CHUNK", CHUNK)


def write(root, kind: str, files: int) -> str:
    """The rows in files of unequal length, in their order."""
    root.mkdir()
    edges = [0, *(COUNT * n // files + 1 for n in range(1, files)), COUNT]
    for n in range(files):
        rows, path = ROWS[edges[n] : edges[n + 1]], root / f"{n}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "json":
            path.write_text(json.dumps(rows))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=GROUP)
    return str(root)


def answers(examples) -> list[str]:
    return [example.response for example in examples]


def left(settings) -> list[str]:
    """What the settings leave of the rows."""
    rows = [row["answer"] for row in ROWS if not ("exclude" in settings and row["kind"] == "odd")]
    skip = settings.get("skip", 0)
    return rows[skip : skip + settings.get("limit", COUNT)]


SETTINGS = {
    "all": {},
    "filtered": {"exclude": {"kind": "^odd$"}},
    "cut": {"skip": 3, "limit": 14},
    "filtered and cut": {"exclude": {"kind": "^odd$"}, "skip": 2, "limit": 7},
}


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("files", [1, 3, 4])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_shards_have_each_row_once_and_go_on_exactly_over_many_resumes(tmp_path, settings, kind, files, shards):
    config = SourceConfig(path=write(tmp_path / "data", kind, files), streaming=True, **settings, **PAIR)

    def opened(shard):
        return open_source(config, shard=shard, shards=shards)

    epochs = [answers(opened(shard)) for shard in range(shards)]
    assert Counter(answer for epoch in epochs for answer in epoch) == Counter(left(settings))
    if shards == 1:
        assert epochs == [left(settings)]
    for shard, epoch in enumerate(epochs):
        expected = epoch * 3
        read, source = [], opened(shard)
        while len(read) < len(expected):
            read += [source.next().response for _ in range(3)]
            cursor = json.loads(json.dumps(source.state_dict()))
            source = opened(shard)
            source.load_state_dict(cursor)
            assert source.state_dict() == cursor  # also of a source that is not drawn from before the next checkpoint
        assert read[: len(expected)] == expected


def test_parts_by_hash_stay_apart_in_shards(tmp_path):
    path = write(tmp_path / "data", "jsonl", 3)
    found = [
        answer
        for part in ((0, 0.5), (0.5, 1))
        for shard in range(2)
        for answer in answers(
            open_source(SourceConfig(path=path, streaming=True, part=part, **PAIR), shard=shard, shards=2)
        )
    ]
    assert Counter(found) == Counter(left({}))


@pytest.mark.parametrize("shards", [1, 2])
def test_files_are_shared_out_whole_where_that_is_even(tmp_path, shards):
    """A file that is another shard's is not even opened; nor, after a resume, one before the last that was read whole."""
    root = tmp_path / "data"
    config = SourceConfig(path=write(root, "jsonl", 4), streaming=True, **PAIR)
    source = open_source(config, shards=shards)  # the first shard has the files 0, 2, ... or all
    whole = answers(open_source(config, shards=shards))
    rows = [len((root / f"{n}.jsonl").read_text().splitlines()) for n in range(4)]
    read = sum(rows[::shards]) - 1  # all but the last row
    assert [source.next().response for _ in range(read)] == whole[:read]
    cursor = source.state_dict()
    (root / "1.jsonl").write_text("no JSON\n")
    again = open_source(config, shards=shards)
    again.load_state_dict(cursor)
    assert answers(again) == whole[read:]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_resume_makes_no_row_again(tmp_path, monkeypatch, kind):
    config = SourceConfig(path=write(tmp_path / "data", kind, 1), streaming=True, skip=2, **PAIR)
    source = open_source(config)
    drawn = answers(islice(source, 17))
    again = open_source(config)
    again.load_state_dict(source.state_dict())
    seen = []
    monkeypatch.setattr(source_module, "_kept", lambda config, row: seen.append(row["answer"]) or True)
    assert again.next().response == str(len(drawn) + 2)
    assert seen == [str(len(drawn) + 2)]


def stream_of(path, tokenizer, *, rank=0, processes=1, shards=1):
    sources = [
        {"path": path, "streaming": True, "exclude": {"kind": "^odd$"}, **PAIR},
        {"path": path, "streaming": True, "skip": 1, "limit": 9, "weight": 0.3, **PAIR},
    ]
    config = StreamConfig(sources=sources, length=24, batch_size=4, min_chunk=4, shards=shards)
    return LanguageStream(config, tokenizer, seed=0, rank=rank, processes=processes)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_runs_that_are_resumed_by_other_numbers_of_processes_read_on(tmp_path, tokenizer, prefetch):
    path = write(tmp_path / "data", "parquet", 2)

    def opened(rank, processes):
        return stream_of(path, tokenizer, rank=rank, processes=processes, shards=2)

    numbers = (1, 2, 1, 4, 2)
    cursors = [*resumed(opened, numbers, 3, lambda batch, rows: [batch.ids_BT[rows]], prefetch)]
    assert len(cursors) == len(numbers)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_object_stores_are_read_by_url_and_glob(tmp_path, monkeypatch, kind, streaming):
    """fsspec's file system in memory stands for the buckets, which differ in their packages only."""
    monkeypatch.setattr(datasets.utils.file_utils, "_raise_if_offline_mode_is_enabled", lambda *what: None)
    write(tmp_path / "data", kind, 3)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "data"), f"/bucket-{kind}", recursive=True)
    config = SourceConfig(path=f"memory://bucket-{kind}/*.{kind}", streaming=streaming, **PAIR)
    source = open_source(config)
    assert answers(islice(source, COUNT)) == left({})
    if streaming:
        again = open_source(config)
        next(iter(source), None)
        again.load_state_dict(source.state_dict())
        assert again.next().response == "0"
    one = open_source(SourceConfig(path=f"memory://bucket-{kind}/1.{kind}", streaming=streaming, **PAIR))
    assert next(iter(one)).response == left({})[COUNT // 3 + 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/rows.jsonl", "s3:// paths need a package: pip install s3fs"),
        ("gs://bucket/*.parquet", "gs:// paths need a package: pip install gcsfs"),
        ("sss://bucket/rows.jsonl", "nothing reads sss://; use s3://, gs://, hf://, https:// or a path"),
        ("https://me:secret@host/rows.jsonl", "a https:// path holds a name or password: leave it out"),
        ("memory://bucket/rows.xml", "is of no format that is read"),
        ("memory://bucket/none.jsonl", "cannot load memory://bucket/none.jsonl: .*; check the URL"),
        ("memory://bucket/*.jsonl", r"cannot load memory://bucket/\*.jsonl: no file matches; check the URL"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_in_one_line(monkeypatch, path, message):
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message) as caught:
        open_source(SourceConfig(path=path, streaming=True, **PAIR))
    assert "\n" not in str(caught.value)
    assert not re.search("secret", str(caught.value))
