"""A row's text is what its file says, character by character: whatever it looks like, in every format, after a resume."""

from __future__ import annotations

import csv
import datetime
import decimal
import itertools
import json
from functools import partial
from pathlib import Path

import datasets
import fsspec
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from conftest import CHARACTERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from language.test_formats import COMPRESSED

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data import row_reader
from vpretrain.language.data.rows import NoRow, Number, as_json, parse, spelled
from vpretrain.language.data.source import count_rows, open_source
from vpretrain.language.data.stream import LanguageStream
from vpretrain.language.evaluation.solve import is_correct, reference

NAMES = ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"]

NUMBERS = ["2", "2.0", "2.50", "-0", "-0.0", "1e3", "1E+3", "10000000000000000000000", "0.1234567890123456789", "1e999"]
TEXTS = ["2024-01-02", "2024-01-02T03:04:05Z", "12:30", "P1DT2H", "https://example.org/a?b=1", "007", "+5"]
TEXTS += ["1e3", "2.0", "true", "null", " a ", "1,000", "tab\tand\nline", "x\u2028y\u0085z", "\U0001f600 é"]
NESTED = ['["a", "b"]', '{"x": 1, "y": [2.0, null, true, "é"], "z": {}}', "[[1e3, -0], []]", "[]", "{}"]
# As in the file, and the text that it is.
SPELLINGS = [(number, number) for number in NUMBERS] + [(json.dumps(text), text) for text in TEXTS]
SPELLINGS += [(json.dumps(text, ensure_ascii=False), text) for text in TEXTS[-2:]]
SPELLINGS += [(value, value) for value in NESTED] + [("true", "true"), ("false", "false"), ("null", "")]


def write(path: Path, rows: list[str], field: str | None = None) -> str:
    """Rows, given as JSON, as lines or as an array, which may be a field of a document; compressed as the name says."""
    lines = ".jsonl" in path.name
    content = "".join(f"{row}\n" for row in rows) if lines else "[" + ",\n ".join(rows) + "]\n"
    if field is not None:
        content = f'{{"version": 2.0, "{field}": {content}, "more": [1]}}'
    path.write_bytes(COMPRESSED[path.suffix if path.suffix in COMPRESSED else ""](content.encode()))
    return str(path)


def write_table(path: Path, rows: list[tuple[str, str]], separator: str, quoting: int = csv.QUOTE_MINIMAL) -> str:
    """Rows with the columns a and b."""
    if path.suffix == ".parquet":
        columns = pyarrow.table([list(column) for column in zip(*rows, strict=True)], names=["a", "b"])
        pyarrow.parquet.write_table(columns, path, row_group_size=2)
        return str(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([("a", "b"), *rows])
    return str(path)


def texts(path: str, template: str, **settings) -> list[str]:
    return [example.response for example in open_source(SourceConfig(path=path, text=template, **settings))]


def test_a_row_keeps_the_spelling_of_each_number_and_each_text():
    row = parse('{"a": 1e3, "b": "1e3", "c": [-0, 2.0, "x"], "d": null, "e": true}')
    assert row == {"a": "1e3", "b": "1e3", "c": ["-0", "2.0", "x"], "d": None, "e": True}
    assert [type(value) for value in (row["a"], row["b"], row["c"][0], row["c"][2])] == [Number, str, Number, str]
    assert as_json(row) == '{"a": 1e3, "b": "1e3", "c": [-0, 2.0, "x"], "d": null, "e": true}'
    assert parse('"only text"') == {"text": "only text"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), ("a", "a"), (Number("1e3"), "1e3"), (True, "true"), (2, "2"), (2.0, "2.0"), ([1, None], "[1, null]"),
        ({"x": ["é", False]}, '{"x": ["é", false]}'), (datetime.date(2024, 1, 2), "2024-01-02"),
        (decimal.Decimal("1.10"), "1.10"), ("é".encode(), "é"), ([b"a", {"x": b"b"}], '["a", {"x": "b"}]'),
        (datetime.timedelta(days=1, hours=2), "P1DT2H"), (datetime.timedelta(0), "PT0S"),
        ([datetime.timedelta(minutes=-1, milliseconds=-500)], '["-PT1M0.5S"]'), (datetime.timedelta(days=-10), "-P10D"),
        (pandas.Timedelta(61_000_000_007, "ns"), "PT1M1.000000007S"),
    ],
)  # fmt: skip
def test_a_value_stands_in_a_template_as_json_spells_it(value, text):
    assert spelled(value) == text
    assert type(spelled(value)) is str


@pytest.mark.parametrize("text", ["", "{", "5", "[1]", "null", '{"a": 1} x', '{"a": 01}', '{"a": "\\udc00"}'])
def test_what_is_no_row_is_none(text):
    with pytest.raises(NoRow):
        parse(text)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_all_kinds_stays_as_it_is_written(tmp_path, name, streaming):
    path = write(tmp_path / name, [f'{{"a": {written}}}' for written, _ in SPELLINGS])
    assert texts(path, "<{a}>", streaming=streaming) == [f"<{text}>" for _, text in SPELLINGS]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_with_nulls_and_without_some_rows_stay_as_they_are_written(tmp_path, streaming):
    columns = range(len(SPELLINGS))
    rows = [", ".join(f'"c{n}": {SPELLINGS[n][0]}' for n in columns), ", ".join(f'"c{n}": null' for n in columns)]
    rows += ['"other": 1', ", ".join(f'"c{n}": {SPELLINGS[-n][0]}' for n in columns)]
    path = write(tmp_path / "rows.jsonl", [f"{{{row}}}" for row in rows])
    empty = "|" * (len(SPELLINGS) - 1)
    expected = ["|".join(text for _, text in SPELLINGS), empty, empty, "|".join(SPELLINGS[-n][1] for n in columns)]
    template = "<" + "|".join(f"{{c{n}}}" for n in columns) + ">"
    assert texts(path, template, streaming=streaming) == [f"<{text}>" for text in expected]


@pytest.mark.parametrize(
    ("solution", "truth"),
    [
        ("Let us think. There were 50, and 38 were eaten. => 12", "12"),
        ("#### 4, and then we go on for a while to 7", "4, and then we go on for a while to 7"),
        ("3x + 1", "3x + 1"),
        ("two apples", "two apples"),
        (r"\frac{\sqrt{2}}{3}", r"\frac{\sqrt{2}}{3}"),
    ],
)
def test_the_true_answer_of_a_written_solution_is_its_last_number_and_a_short_response_is_one(
    tmp_path, solution, truth
):
    path = write(tmp_path / "rows.jsonl", [json.dumps({"q": "?", "a": solution})])
    (pair,) = open_source(SourceConfig(path=path, prompt="{q}", response="{a}"))
    assert reference(pair) == truth


def test_verified_answers_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "rows.jsonl", [f'{{"question": "?", "answer": {n}}}' for n in ("2", "2.5", "1e3", "null")])
    pairs = list(open_source(SourceConfig(path=path, prompt="{question}", response=" so {answer}")))
    assert [reference(pair) for pair in pairs] == ["2", "2.5", "1e3", " so "]
    assert is_correct("#### 2", "2")
    assert is_correct("it is 1,000", "1e3")
    assert is_correct("it is 1e3", "1000")
    assert not is_correct("it is 1", "1e3")
    assert not is_correct("it is 3", "1e3")


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_is_as_its_types_say(tmp_path, streaming):
    columns = {
        "whole": (pyarrow.int64(), [2, None], "2"),
        "large": (pyarrow.uint64(), [2**64 - 1, None], "18446744073709551615"),
        "real": (pyarrow.float64(), [2, None], "2.0"),
        "text": (pyarrow.string(), ["2024-01-02", None], "2024-01-02"),
        "date": (pyarrow.date32(), [datetime.date(2024, 1, 2), None], "2024-01-02"),
        "yes": (pyarrow.bool_(), [True, None], "true"),
        "bytes": (pyarrow.binary(), ["é".encode(), None], "é"),
        "span": (pyarrow.duration("us"), [datetime.timedelta(days=1, hours=2), None], "P1DT2H"),
        "exact": (pyarrow.decimal128(5, 2), [decimal.Decimal("1.10"), None], "1.10"),
        "list": (pyarrow.list_(pyarrow.int64()), [[1, None], None], "[1, null]"),
        "struct": (pyarrow.struct({"x": pyarrow.float64(), "y": pyarrow.string()}), [{"x": 1, "y": "é"}, None],
                   '{"x": 1.0, "y": "é"}'),
        "inner": (pyarrow.list_(pyarrow.struct({"x": pyarrow.binary(), "y": pyarrow.duration("ns")})),
                  [[{"x": b"a", "y": datetime.timedelta(seconds=-1.5)}], None], '[{"x": "a", "y": "-PT1.5S"}]'),
    }  # fmt: skip
    arrays = [pyarrow.array(values, kind) for kind, values, _ in columns.values()]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=list(columns)), tmp_path / "rows.parquet")
    template = "|".join(f"{{{name}}}" for name in columns)
    expected = ["|".join(text for _, _, text in columns.values()), "|" * (len(columns) - 1)]
    assert texts(str(tmp_path / "rows.parquet"), template, streaming=streaming) == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_blank_lines_other_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, mark, streaming):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + b'{"a": 1}\r\n\n \t\r\n{"a": 2}\n\n')
    assert texts(str(path), "{a}", streaming=streaming) == ["1", "2"]
    path.write_bytes(b'\n{"a": 1}\n\n \t\r\n{"a": 2}')
    assert count_rows(SourceConfig(path=str(path))) == 2


DOCUMENTS = {
    "array": '[{"a": 1.0}, {"a": "x"}]',
    "array over lines": '[\n  {\n    "a": 1.0\n  },\n  {"a": "x"}\n]\n',
    "one after another": '{"a": 1.0}{"a": "x"}',
    "lines": '{"a": 1.0}\n\n{"a": "x"}\n',
    "objects over lines": '{\n "a": 1.0\n}\n{\n "a": "x"\n}',
    "byte order mark": '\ufeff[{"a": 1.0}, {"a": "x"}]',
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_json_document_is_an_array_or_objects_one_after_another(tmp_path, document, streaming):
    (tmp_path / "rows.json").write_text(document, encoding="utf-8")
    assert texts(str(tmp_path / "rows.json"), "{a}", streaming=streaming) == ["1.0", "x"]


def test_an_array_of_texts_is_text(tmp_path):
    (tmp_path / "rows.json").write_text('["one", "2024-01-02"]')
    source = open_source(SourceConfig(path=str(tmp_path / "rows.json")))
    assert [example.response for example in source] == ["one", "2024-01-02"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_source_without_a_row_says_so(tmp_path, streaming):
    for name, content in (("rows.json", "[]"), ("rows.jsonl", "\n\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}: (it has no row; check the file|no examples are left)"):
            open_source(SourceConfig(path=str(tmp_path / name), streaming=streaming)).next()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": \n', r"line 2 .* is no JSON \(Expecting value, at character 6\); check"),
        ("rows.jsonl", '{"a": 1}\n\n5\n', "line 3 of rows.jsonl is no object with fields"),
        ("rows.jsonl", '{"a": 1} {"a": 2}\n', r"line 1 of rows.jsonl is no JSON \(Extra data, at character 9\)"),
        ("rows.jsonl", '{"a": "\\ud800"}\n', "line 1 of rows.jsonl has half a surrogate pair"),
        ("rows.jsonl", "\udcff", r"line 1 of rows.jsonl is no UTF-8 \(byte 1 of line 1 is 0xff\)"),
        ("rows.json", '[{"a": 1}, {"a": ]', "row 2 of rows.json is no JSON"),
        ("rows.json", '[{"a": 1} {"a": 2}]', "row 1 of rows.json has neither a comma nor the end"),
        ("rows.json", '[{"a": 1}', "row 1 of rows.json has neither a comma nor the end"),
        ("rows.json", '[{"a": 1}] 3', "the array of rows.json has no end, or something after it"),
    ],
)
def test_what_is_no_row_is_named_with_its_place_in_one_line(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"cannot load .*{name}: .*{message}") as caught:
        list(open_source(SourceConfig(path=str(tmp_path / name), text="{a}", streaming=streaming)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [150, 100_000])
def test_a_row_that_is_nested_too_deeply_is_refused(tmp_path, depth):
    path = write(tmp_path / "rows.jsonl", [f'{{"a": {"[" * depth}{"]" * depth}}}'])
    with pytest.raises(UserError, match=r"line 1 of rows\.jsonl is nested more than 100 deep; check the file"):
        open_source(SourceConfig(path=path, text="{a}"))
    path = write(tmp_path / "rows.jsonl", [f'{{"a": {"[" * 90}{"]" * 90}}}'])
    assert texts(path, "{a}") == ["[" * 90 + "]" * 90]


def test_a_mistake_in_a_remote_file_is_not_blamed_on_the_network(monkeypatch):
    monkeypatch.setattr(datasets.utils.file_utils, "_raise_if_offline_mode_is_enabled", lambda *what: None)
    fsspec.filesystem("memory").pipe("/mistakes/rows.jsonl", b'{"a": 1}\n{"a"\n')
    with pytest.raises(UserError, match=r"line 2 of rows.jsonl is no JSON .*; check the file"):
        list(open_source(SourceConfig(path="memory://mistakes/rows.jsonl", text="{a}", streaming=True)))


# Fuzzing: values as they are written, as they stand in a template, and as they stand inside another value.
NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
TEXT = st.text() | st.sampled_from(TEXTS)
CONSTANT = st.sampled_from(["true", "false"])


def written_text(text: str, ascii: bool) -> tuple[str, str, str]:
    return json.dumps(text, ensure_ascii=ascii), text, json.dumps(text, ensure_ascii=False)


def written_list(values: list[tuple[str, str, str]], comma: str) -> tuple[str, str, str]:
    inside = f"[{', '.join(inner for _, _, inner in values)}]"
    return f"[{comma.join(written for written, _, _ in values)}]", inside, inside


def written_object(values: dict[str, tuple[str, str, str]], comma: str) -> tuple[str, str, str]:
    inside = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {inner}" for name, (_, _, inner) in values.items())
    fields = comma.join(f"{json.dumps(name)}:{written}" for name, (written, _, _) in values.items())
    return f"{{{fields}}}", f"{{{inside}}}", f"{{{inside}}}"


SCALARS = st.just(("null", "", "null")) | (NUMBER | CONSTANT).map(lambda value: (value, value, value))
SCALARS |= st.builds(written_text, TEXT, st.booleans())
COMMA = st.sampled_from([",", ", ", " ,\t"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(written_list, st.lists(inner, max_size=3), COMMA)
        | st.builds(written_object, st.dictionaries(TEXT, inner, max_size=3), COMMA)
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3), max_size=12)


def fuzzed(cases, examples: int) -> None:
    health = list(HealthCheck)
    bounded = settings(
        deadline=None, database=None, derandomize=True, suppress_health_check=health, max_examples=examples
    )
    bounded(cases)()


def check_every_way(path: str, template: str, expected: list[str], read: int, **settings) -> None:
    """A source has the expected texts: as a copy on disk, streamed, and after a resume behind the first `read`."""
    assert texts(path, template, **settings) == expected
    config = SourceConfig(path=path, text=template, streaming=True, **settings)
    source = open_source(config)
    assert [example.response for example in itertools.islice(source, read)] == expected[:read]
    cursor = json.loads(json.dumps(source.state_dict()))
    again = open_source(config)
    again.load_state_dict(cursor)
    assert [example.response for example in again] == expected[read:]


USUAL = dict.fromkeys(NAMES)  # with the field that holds the rows
OTHERS = {"rows.json": "data", "rows.json.zst": "data", "rows.jsonl.xz": None, "rows.jsonl.bz2": None}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("files", "examples"), [(USUAL, (12, 300)), (OTHERS, (3, 100))], ids=["usual", "others"])
def test_any_rows_are_what_the_file_says_in_every_format_and_after_a_resume(
    tmp_path, monkeypatch, many, files, examples
):
    monkeypatch.setattr(row_reader, "CHUNK", 60)  # a few rows
    folders = itertools.count()

    @given(rows=ROWS, read=st.integers(0, 14))
    def cases(rows, read):
        first = {"a": ("0", "0", "0"), "b": ("0", "0", "0")}  # a field that no row has would be a mistake
        rows = [first, *rows]
        written = ["{" + ", ".join(f'"{name}": {value[0]}' for name, value in row.items()) + "}" for row in rows]
        expected = [f"<{row.get('a', ('', ''))[1]}|{row.get('b', ('', ''))[1]}>" for row in rows]
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        for name, field in files.items():
            check_every_way(write(folder / name, written, field), "<{a}|{b}>", expected, read, field=field)

    fuzzed(cases, many(*examples))


TABLES = {"rows.csv": ",", "semicolons.csv": ";", "rows.tsv": "\t"}


@pytest.mark.timeout(900)
def test_any_table_is_what_the_file_says(tmp_path, monkeypatch, many):
    monkeypatch.setattr(row_reader, "CHUNK", 60)
    folders = itertools.count()

    @given(
        rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        read=st.integers(0, 9),
    )
    def cases(rows, quoting, read):
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        for name, separator in TABLES.items():
            path = write_table(folder / name, rows, separator, quoting)
            check_every_way(path, "<{a}|{b}>", [f"<{a}|{b}>" for a, b in rows], read)

    fuzzed(cases, many(4, 100))


@pytest.mark.timeout(900)
def test_any_text_file_is_what_the_file_says_but_for_its_line_ends(tmp_path, many):
    files = itertools.count()

    @given(content=TEXT, ending=st.sampled_from(list(COMPRESSED)), read=st.integers(0, 1))
    def cases(content, ending, read):
        path = tmp_path / f"{next(files)}.txt{ending}"
        path.write_bytes(COMPRESSED[ending](content.encode()))
        text = content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        check_every_way(str(path), "<{text}>", [f"<{text}>"], read)

    fuzzed(cases, many(8, 200))


LETTERS = st.text(CHARACTERS.replace("<", ""), min_size=1, max_size=20).filter(str.strip)  # without special tokens
CELL = LETTERS.map(lambda text: (json.dumps(text), text)) | st.sampled_from(NUMBERS[:6]).map(
    lambda number: (number,) * 2
)


@pytest.mark.timeout(900)
def test_the_learner_is_given_any_rows_character_by_character_and_after_a_resume(
    tmp_path, tokenizer, monkeypatch, many
):
    monkeypatch.setattr(row_reader, "CHUNK", 60)
    folders = itertools.count()

    def read(stream: LanguageStream, count: int) -> list[str]:
        """The next documents, at least `count`, decoded."""
        found: list[str] = []
        while len(found) < count:
            for batch in stream.next():
                rows = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in batch.ids_BT.tolist()]
                found += [document for row in rows for document in row.split("<eos>") if document]
        return found

    @given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
    def cases(rows):
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        written = [f'{{"a": {a}, "b": {b}}}' for (a, _), (b, _) in rows]
        cells = [(a, b) for (_, a), (_, b) in rows]
        pairs = [f"{a}{b}" for a, b in cells]
        pair = {"prompt": "{a}", "response": "{b}"}
        text = f"one: {pairs[0]}"  # a shorter one is left out
        compressed = folder / "text.txt.zst"
        compressed.write_bytes(COMPRESSED[".zst"](text.encode()))
        for path, form, expected in (
            (write(folder / "rows.jsonl.gz", written), pair, pairs),
            (write(folder / "lines.jsonl.xz", written), pair, pairs),
            (write(folder / "rows.json", written, "data"), pair | {"field": "data"}, pairs),
            (write_table(folder / "rows.csv", cells, ","), pair, pairs),
            (write_table(folder / "rows.tsv", cells, "\t"), pair, pairs),
            (write_table(folder / "rows.parquet", cells, ""), pair, pairs),
            (str(compressed), {}, [text]),
        ):
            source = {"path": path, "streaming": True, **form}
            packing = "prompt" in form  # a packed row may end in the middle of a raw text
            config = StreamConfig(sources=[source], length=64, batch_size=2, min_chunk=4, packing=packing)
            stream, again = (LanguageStream(config, tokenizer, seed=0) for _ in range(2))
            before = read(stream, 3)
            again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
            found = before + read(again, len(rows))
            assert found == list(itertools.islice(itertools.cycle(expected), len(found)))

    fuzzed(cases, many(4, 100))


@pytest.mark.timeout(900)
def test_any_parquet_is_what_its_types_say(tmp_path, many):
    inner = pyarrow.struct({"x": pyarrow.int64(), "y": pyarrow.string()})
    schema = pyarrow.schema(
        {"a": pyarrow.int64(), "b": pyarrow.string(), "c": pyarrow.float64(), "d": inner, "e": pyarrow.list_(inner),
         "f": pyarrow.binary(), "g": pyarrow.date32(), "h": pyarrow.decimal128(20, 4)}
    )  # fmt: skip
    whole = st.integers(-(2**63), 2**63 - 1)
    # The order of a struct's fields is the type's, not that of the row it was written from.
    pair = st.tuples(st.none() | whole, st.none() | TEXT).map(lambda xy: dict(zip("xy", xy, strict=True)))
    cell = {"a": whole, "b": TEXT, "c": st.floats(allow_nan=False), "d": pair, "e": st.lists(pair, max_size=3)}
    exact = st.integers(-(10**20) + 1, 10**20 - 1).map(lambda number: decimal.Decimal(number).scaleb(-4))
    cell |= {"f": TEXT.map(str.encode), "g": st.dates(), "h": exact}
    files = itertools.count()

    @given(
        rows=st.lists(st.fixed_dictionaries({name: st.none() | of for name, of in cell.items()}), min_size=1),
        read=st.integers(0, 6),
    )
    def cases(rows, read):
        path = tmp_path / f"{next(files)}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
        spelling = (
            {"f": bytes.decode}
            | dict.fromkeys("abgh", str)
            | dict.fromkeys("cde", partial(json.dumps, ensure_ascii=False))
        )
        expected = ["|".join("" if row[n] is None else spelling[n](row[n]) for n in cell) for row in rows]
        check_every_way(str(path), "|".join(f"{{{name}}}" for name in cell), expected, read)

    fuzzed(cases, many(12, 300))
