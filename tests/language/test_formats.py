"""Text files in the formats that users have: each value is the text in the file, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from itertools import islice
from pathlib import Path

import datasets
import pyarrow
import pytest

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data import row_reader
from vpretrain.language.data.example import fields_of
from vpretrain.language.data.source import count_rows, open_source

COMPRESSED = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}
VALUES = ["007", "2024-01-02", "1e3", "2.50", "true", "NA", "null", "-", " x ", 'say "so"', "a,b;c", "é"]


def fields(path: Path, *names: str, **settings) -> list[list[str]]:
    """The values of the rows."""
    return [
        [example.fields[name] for name in names]
        for example in open_source(SourceConfig(path=str(path), text=f"{{{names[0]}}}", **settings))
    ]


def written(values: list[str], separator: str) -> str:
    return separator.join(f'"{value.replace(chr(34), 2 * chr(34))}"' if '"' in value else value for value in values)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("jsonl", '{"a": "007", "b": "é"}\n{"a": "2", "b": "2024-01-02"}\n'),
        ("json", '[{"a": "007", "b": "é"}, {"a": "2", "b": "2024-01-02"}]'),
        ("csv", "a,b\n007,é\n2,2024-01-02\n"),
        ("tsv", "a\tb\r\n007\té\r\n\r\n2\t2024-01-02"),
    ],
)
def test_a_compressed_file_has_the_rows_of_the_file(tmp_path, kind, content, ending, streaming):
    path = tmp_path / f"rows.{kind}{ending}"
    path.write_bytes(COMPRESSED[ending](content.encode()))
    assert fields(path, "a", "b", streaming=streaming) == [["007", "é"], ["2", "2024-01-02"]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_that_looks_like_a_glob_is_that_of_the_file(tmp_path, streaming):
    for name in ("rows[1].jsonl", "rows1.jsonl", "rows?.jsonl"):
        (tmp_path / name).write_text(json.dumps({"a": name}) + "\n")
    for name in ("rows[1].jsonl", "rows?.jsonl"):
        assert fields(tmp_path / name, "a", streaming=streaming) == [[name]]
    (tmp_path / "._rows1.jsonl").write_bytes(b"\x00\x05\x16\x07")  # as macOS writes beside a file
    assert fields(tmp_path, "a", streaming=streaming) == [["rows1.jsonl"], ["rows?.jsonl"], ["rows[1].jsonl"]]
    datasets.Dataset.from_list([{"a": "x"}]).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").rename(tmp_path / "rows[2].parquet")
    assert fields(tmp_path / "rows[2].parquet", "a", streaming=streaming) == [["x"]]


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_text_file_is_one_row_with_the_line_ends_of_unix(tmp_path, ending):
    (tmp_path / f"one.txt{ending}").write_bytes(COMPRESSED[ending](b'one "two"\r\nthree\rfour\n'))
    (tmp_path / f"two.txt{ending}").write_bytes(COMPRESSED[ending](b"\xef\xbb\xbf\xc3\xa9"))
    assert fields(tmp_path, "text") == [['one "two"\nthree\nfour\n'], ["é"]]
    assert count_rows(SourceConfig(path=str(tmp_path))) == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_every_value_of_a_table_is_the_text_in_the_file(tmp_path, kind, separator, streaming):
    path = tmp_path / f"rows.{kind}"
    values = [f'"{value}"' if separator in value else value for value in VALUES]
    names = [f"c{n}" for n in range(len(VALUES))]
    rows = [names, values, ["x"] * len(VALUES), [""] * (len(VALUES) - 1) + ["y"]]
    lines = [
        separator.join(value if value[:1] == '"' else written([value], separator) for value in row) for row in rows
    ]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert fields(path, *names, streaming=streaming) == [VALUES, *rows[2:]]


def test_a_value_of_a_table_may_have_several_lines_and_be_long(tmp_path):
    path, text = tmp_path / "rows.csv", "long " * 40_000  # beyond the limit of Python's csv
    path.write_bytes(f'a,b\r\n"one\n\r\ntwo\rthree",1\r\n{text},2\r\n'.encode())
    assert fields(path, "a", "b") == [["one\n\r\ntwo\rthree", "1"], [text, "2"]]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_without_a_comma_in_its_first_line_is_separated_by_what_stands_there(tmp_path, separator):
    path = tmp_path / "rows.csv"
    path.write_text(f'\n"question"{separator}b\r\n1,5{separator}2, or "3"\r\n', encoding="utf-8")
    assert fields(path, "question", "b", streaming=True) == [["1,5", '2, or "3"']]


def test_a_comma_comes_first_and_one_column_has_no_separator(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b;c\n1,2;3\n")
    assert fields(path, "a", "b;c") == [["1", "2;3"]]
    path = tmp_path / "column.csv"
    path.write_text("a\none; two\n")
    assert fields(path, "a") == [["one; two"]]
    path = tmp_path / "rows.tsv"
    path.write_text("a;b\tc\n1\t2\n")
    assert fields(path, "c", "a;b", streaming=True) == [["2", "1"]]


def test_an_empty_value_of_a_table_is_left_out_and_counted(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nq,\n,a\nq,a\n")
    examples = list(open_source(SourceConfig(path=str(path), prompt="{question}", response="{answer}")))
    assert [example.lacks for example in examples] == ["response empty", "prompt empty", ""]


def test_a_column_that_no_template_can_name_is_refused_and_other_braces_are_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Problem: en,final answer,\n2+2?,4,\n")
    with pytest.raises(UserError, match=r"\{Problem: en\} in .* would stay as it is: .*; rename it"):
        open_source(SourceConfig(path=str(path), prompt="{Problem: en}", response="{final answer}"))
    boxed = SourceConfig(path=str(path), prompt="Put it in \\boxed{your answer}:", response="\\boxed{{final answer}}")
    assert [(one.prompt, one.response) for one in open_source(boxed)] == [
        ("Put it in \\boxed{your answer}:", "\\boxed{4}")
    ]


def test_the_columns_of_spreadsheets_can_be_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Problem (en),v1.0,# of steps,hints\n2+2?,4,1,none\n")
    source = SourceConfig(path=str(path), prompt="{Problem (en)} {# of steps}", response="{v1.0}")
    assert [(one.prompt, one.response) for one in open_source(source)] == [("2+2? 1", "4")]
    assert fields_of("{v1.0} {hints} \\boxed{x} {a: b}") == ["v1", "hints", "v1.0"]


DOCUMENT = {"version": 2, "data": [{"a": 1}, {"a": "x"}], "more": [{"a": 3}], "none": 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_rows_of_a_document_may_be_a_list_in_a_field(tmp_path, streaming):
    path = tmp_path / "rows.json"
    path.write_text('{"version": 2, "data": [{"a": 1e3}, {"a": "x"}], "more": [{"a": [2.0, null]}]}')
    assert fields(path, "a", field="data", streaming=streaming) == [["1e3"], ["x"]]
    assert fields(path, "a", field="more", streaming=streaming) == [[["2.0", None]]]  # another copy on disk


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("rows.json", json.dumps(DOCUMENT), {"field": "rows"},
         r"rows\.json has no list in the field 'rows' \(fields: version, data, more, none\); check the file"),
        ("rows.json", json.dumps(DOCUMENT), {"field": "none"}, "rows.json has no list in the field 'none'"),
        ("rows.json", "[1]", {"field": "data"}, "rows.json is no object with fields"),
        ("rows.json", '{"data": [{"a": 1}, 5]}', {"field": "data"}, "row 2 of rows.json is no object with fields"),
        ("rows.json", '{"data": [{"a": "\\ud800"}]}', {"field": "data"}, "row 1 of rows.json has half a surrogate"),
        ("rows.json", '{"data": [', {"field": "data"}, r"rows\.json is no JSON \(Expecting value, at character 11\)"),
        ("rows.json", f'{{"data": [{{"a": {"[" * 150}{"]" * 150}}}]}}', {"field": "data"}, "nested more than 100 deep"),
        ("rows.jsonl", '{"a": 1}', {"field": "data"}, "field=data is for .json files: leave it out"),
        ("rows.csv", "a,b\n1,2\n1,2,3\n", {}, "line 3 of rows.csv has 3 values for 2 columns; check the file"),
        ("rows.csv", "a,b\n\n1\n", {}, "line 3 of rows.csv has 1 values for 2 columns"),
        ("rows.csv", 'a,b\n"1" 2,3\n', {}, r"line 2 of rows.csv is no row of a table \(',' expected after '\"'\)"),
        ("rows.csv", 'a,b\n1,2\n"3\n4\n', {}, r"line 3 of rows.csv is no row of a table \(unexpected end of data\)"),
        ("rows.csv", "a,a\n1,2\n", {}, "line 1 of rows.csv names the column 'a' twice"),
        ("rows.csv", "a,b\n", {}, "it has no row"),
        ("rows.xml", "<a>", {}, "is of no format that is read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_its_format_is_one_line(tmp_path, name, content, settings, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(SourceConfig(path=str(tmp_path / name), text="{a}", **settings))
    assert "\n" not in str(caught.value)


def test_a_field_without_a_path_is_refused():
    with pytest.raises(ValueError, match="field goes with path only"):
        SourceConfig(hub="a/b", field="data")


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_cursor_goes_on_in_every_format(tmp_path, monkeypatch, kind, ending):
    monkeypatch.setattr(row_reader, "CHUNK", 60)  # a few rows
    rows = [f"row {number}" for number in range(20)]
    lines = ["a", *rows] if kind == "csv" else [json.dumps({"a": row}) for row in rows]
    path = tmp_path / f"rows.{kind}{ending}"
    path.write_bytes(COMPRESSED[ending]("\n".join(lines).encode()))
    config = SourceConfig(path=str(path), text="{a}", streaming=True)
    source = open_source(config)
    assert [example.response for example in islice(source, 7)] == rows[:7]
    again = open_source(config)
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert [example.response for example in again] == rows[7:]


@pytest.mark.parametrize("glob", ["", "rows*"])
def test_a_file_beside_its_compressed_copy_is_refused(tmp_path, glob):
    for name in ("rows.jsonl", "others.jsonl.gz"):
        (tmp_path / name).write_bytes(COMPRESSED[".gz" if name.endswith(".gz") else ""](b'{"a": 1}\n'))
    assert len(fields(tmp_path, "a")) == 2
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
    with pytest.raises(UserError, match=r"holds rows\.jsonl and rows\.jsonl\.gz, so that rows would be read twice"):
        fields(tmp_path / glob, "a")
    assert fields(tmp_path / "rows.jsonl.gz", "a") == [["1"]]
