"""The rows of text files as texts of JSON: JSON Lines, JSON, CSV, TSV and plain text, in UTF-8, compressed or not.

What cannot be read comes as a `Fault` in its place. Faults depend on the content of a file alone.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow

from vpretrain.language.data.rows import HALF_PAIR, NoRow, parse, row_at, rows_in
from vpretrain.pretrained import first_line

FORMAT = re.compile(r"\.(jsonl|json|csv|tsv|txt|md)(?:\.(gz|bz2|xz|zst))?$")
NO_UTF8 = "is no UTF-8"  # the beginning of a reason
_SPACE = " \t\r\n"
_SNIFFED = 10_000  # characters of a table's first line
_LOST = "; the rest of the file cannot be read"  # it is not known where the next row begins
_BLANK = re.compile(f"[{_SPACE}]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as bytes that cannot be decoded are kept
_HALF = re.compile("[\ud800-\udfff]")
_OPEN: dict[str | None, Callable[[Any], Any]] = {
    None: lambda file: file,
    "gz": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    "zst": lambda file: pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"),
}
_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)  # of these decompressors
# Python's own limit of 131,072 characters per value is below what a document has.
csv.field_size_limit(2**31 - 1)


class Fault(NamedTuple):
    """A row, or the rest of a file, that cannot be read; place and reason make a sentence."""

    place: str
    reason: str


Row = str | Fault


def file_name(path: str) -> str:
    """The name of a file, without its folders or the query of its URL."""
    return (path.split("?")[0] if path.startswith("http") else path).rpartition("/")[2]


def rows_of_file(binary: IO[bytes], name: str, field: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file, whose name gives format and compression; `field` of a JSON document holds the rows.

    Raises an exception of any kind if the file itself cannot be read on.
    """
    found = FORMAT.search(name)
    assert found is not None
    raw = _Raw(binary)
    file = io.BufferedReader(_OPEN[found[2]](io.BufferedReader(raw)))
    lines = _Lines(file)
    try:
        yield from _rows(lines, name, found[1], field)
    except _BROKEN as error:
        if raw.failed:
            raise
        yield Fault(name, f"breaks off after line {lines.number:,} ({first_line(error)})")


def _rows(lines: _Lines, name: str, kind: str, field: str | None) -> Iterator[Row]:
    if kind == "jsonl":
        return _json_lines(lines, name)
    if kind in ("csv", "tsv"):
        return _table(lines, name, None if kind == "csv" else "\t")
    if kind in ("txt", "md"):
        return _text(lines, name)
    return _items(lines, name) if field is None else _items_of(lines, name, field)


class _Raw(io.RawIOBase):
    """A binary file that notes whether reading it has failed: that is no fault of its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.failed = file, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception:
            self.failed = True
            raise
        buffer[: len(data)] = data
        return len(data)


class _Lines:
    """The lines of a UTF-8 file, with their ends; a byte that is not UTF-8 becomes half a surrogate pair.

    Attributes:
        number: of the last line, from 1.
        flaw: what is wrong with the first line that is not UTF-8; a reader that has dealt with it clears this.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.number = 0
        self.flaw = ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        mark = len(codecs.BOM_UTF8) if self.number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            return line[mark:].decode()
        except UnicodeDecodeError as error:
            self.flaw = self.flaw or _flaw(self.number, mark + error.start, line[mark + error.start])
            return line[mark:].decode(errors="surrogateescape")

    def take_flaw(self) -> str:
        """Return what is wrong with the lines since the last call; empty if they are UTF-8."""
        flaw, self.flaw = self.flaw, ""
        return flaw


def _flaw(line: int, place: int, byte: int) -> str:
    return f"{NO_UTF8} (byte {place + 1} of line {line} is 0x{byte:02x})"


def _json_lines(lines: _Lines, name: str) -> Iterator[Row]:
    """Yield the rows of JSON Lines; blank lines are none."""
    for line in lines:
        if row := line.strip(_SPACE):
            reason = lines.take_flaw() or _no_row(row)
            yield Fault(f"line {lines.number} of {name}", reason) if reason else row


def _no_row(text: str) -> str:
    """Why a text is no row; empty if it is one."""
    try:
        parse(text)
    except NoRow as error:
        return str(error)
    return ""


def _items(lines: _Lines, name: str) -> Iterator[Row]:
    """Yield the rows of a JSON document: the items of one array, or values one after another."""
    document = "".join(lines)
    number, place = 0, _after_blank(document, 0)
    is_array = document.startswith("[", place)
    if is_array:
        place = _after_blank(document, place + 1)
    while place < len(document) and not (is_array and document[place] == "]"):
        number += 1
        reason = ""
        try:
            _, end = row_at(document, place)
        except NoRow as error:
            reason = str(error)
            if error.end is None:
                yield Fault(f"row {number} of {name}", f"{reason}{_LOST}")
                return
            end = error.end
        bad = _NOT_UTF8.search(document, place, end) if lines.flaw else None
        reason = _flaw_at(document, bad.start()) if bad else reason
        yield Fault(f"row {number} of {name}", reason) if reason else document[place:end]
        place = _after_blank(document, end)
        if is_array and document.startswith(",", place):
            place = _after_blank(document, place + 1)
        elif is_array and not document.startswith("]", place):
            yield Fault(f"row {number} of {name}", f"has neither a comma nor the end of the array after it{_LOST}")
            return
    if is_array and document[place:].rstrip(_SPACE) != "]":
        yield Fault(f"the array of {name}", "has no end, or something after it")


def _flaw_at(document: str, place: int) -> str:
    start = document.rfind("\n", 0, place) + 1
    before = document[start:place].encode(errors="surrogateescape")
    return _flaw(document.count("\n", 0, place) + 1, len(before), ord(document[place]) - 0xDC00)


def _items_of(lines: _Lines, name: str, field: str) -> Iterator[Row]:
    """Yield the rows in a list that is a field of a JSON document of one object."""
    document = "".join(lines)
    if lines.flaw:
        yield Fault(name, lines.flaw)
        return
    try:
        texts = rows_in(document, field)
    except NoRow as error:
        yield Fault(name, str(error))
        return
    for number, text in enumerate(texts, start=1):
        reason = HALF_PAIR if _HALF.search(text) else _no_row(text)
        yield Fault(f"row {number} of {name}", reason) if reason else text


def _table(lines: _Lines, name: str, separator: str | None) -> Iterator[Row]:
    """Yield the rows of CSV or TSV, whose first line names the columns; each value is the text in the file.

    `separator` None: the one in the first line.
    """
    first = next((line for line in lines if line.strip("\r\n")), "")
    number = lines.number
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator or _separator(first), strict=True)
    columns: list[str] | None = None
    while True:
        place = f"line {number if columns is None else lines.number + 1} of {name}"
        values: list[str] = []
        try:
            values = next(reader)
            reason = lines.take_flaw()
        except StopIteration:
            return
        except csv.Error as error:
            reason = lines.take_flaw() or f"is no row of a table ({error})"
        if not values and not reason:  # a blank line
            continue
        if columns is None:
            columns = values
            twice = {column for column in columns if columns.count(column) > 1}
            if twice:
                reason = f"names the column {min(twice)!r} twice"
            if reason:  # without names nothing in the file can be used
                yield Fault(place, reason)
                return
            continue
        if not reason and len(values) != len(columns):
            reason = f"has {len(values)} values for {len(columns)} columns"
        if reason:
            yield Fault(place, reason)
        else:
            yield json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False)


def _separator(line: str) -> str:
    """What separates the names of columns: a comma, unless there is none, but a semicolon, tab or bar."""
    if "," in line:
        return ","
    try:
        return csv.Sniffer().sniff(line[:_SNIFFED], ";\t|").delimiter
    except csv.Error:  # one column
        return ","


def _text(lines: _Lines, name: str) -> Iterator[Row]:
    """Yield a whole file as one row; its line ends, which depend on the system that wrote it, become line feeds."""
    text = "".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    yield Fault(name, lines.flaw) if lines.flaw else json.dumps({"text": text}, ensure_ascii=False)


def _after_blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    assert found is not None  # it may be empty
    return found.end()
