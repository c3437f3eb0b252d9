"""JSON files as rows of text, one text per row, kept and streamed by `datasets`; `rows.parse` makes fields of them.

The JSON reader of `datasets` is not used: it guesses one type per column from the values, and converts them to it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import datasets
from pyarrow import Table, array, string

from vpretrain.language.data.rows import NoRow, parse, row_at

# Characters in a table, about. A cursor of `datasets` counts tables: another number would misplace those of earlier runs.
CHUNK = 10 * 2**20
_DOCUMENT = re.compile(r"\.json(\.gz)?(\?.*)?$")  # other files hold a row per line
_SPACE = " \t\r\n"
_BLANK = re.compile(f"[{_SPACE}]*")


def open_rows(files: Sequence[str], *, streaming: bool) -> Any:
    """Open files, or URLs and globs of them, as a data set with the column `row`; without streaming as a copy on disk."""
    reader = JsonReader(data_files=list(files))
    if not reader.config.data_files["train"]:  # `datasets` passes over a glob that matches nothing
        raise FileNotFoundError("no file matches")
    if streaming:
        return reader.as_streaming_dataset("train")
    reader.download_and_prepare()
    if not reader.info.splits["train"].num_examples:
        raise NoRow("it has no row")
    return reader.as_dataset("train")


class JsonReader(datasets.ArrowBasedBuilder):
    """Cuts files into the texts of their rows, and parses each: what is no row is found here, where its line is known."""

    # Raise it when files give other rows than before: then copies on disk are made again.
    VERSION = datasets.Version("1.0.0")

    def _info(self) -> Any:
        return datasets.DatasetInfo(features=datasets.Features({"row": datasets.Value("string")}))

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        dl_manager.download_config.extract_on_the_fly = True
        files = dl_manager.download_and_extract(self.config.data_files)["train"]
        # A downloaded file has lost its name. Lists of equal length are divided among shards together.
        data = {"files": list(files), "origins": list(self.config.data_files["train"])}
        return [datasets.SplitGenerator(name="train", gen_kwargs=data)]

    def _generate_tables(self, files: Sequence[str], origins: Sequence[str]) -> Iterator[tuple[tuple[int, int], Table]]:
        for number, (file, origin) in enumerate(zip(files, origins, strict=True)):
            # `datasets` puts its own `open` into the module of a reader: it opens URLs and compressed files as well.
            with open(file, "rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="\n") as text:
                for place, rows in enumerate(_chunks(_rows(text, origin))):
                    yield (number, place), Table.from_arrays([array(rows, string())], names=["row"])


def _rows(file: TextIO, origin: str) -> Iterator[str]:
    """Yield the text of each row. Raises NoRow with its place for one that is none."""
    name = origin.split("?")[0].rpartition("/")[2]
    return items(file.read(), name) if _DOCUMENT.search(origin) else lines(file, name)


def lines(file: Iterable[str], name: str) -> Iterator[str]:
    """Yield the rows of JSON Lines; blank lines are none."""
    for number, line in enumerate(file, start=1):
        if row := line.strip(_SPACE):
            try:
                parse(row)
            except NoRow as error:
                raise NoRow(f"line {number} of {name} {error}") from None
            yield row


def items(document: str, name: str) -> Iterator[str]:
    """Yield the rows of a JSON document: the items of one array, or values one after another."""
    number, place = 0, _after_blank(document, 0)
    is_array = document.startswith("[", place)
    if is_array:
        place = _after_blank(document, place + 1)
    while place < len(document) and not (is_array and document[place] == "]"):
        number += 1
        try:
            _, end = row_at(document, place)
        except NoRow as error:
            raise NoRow(f"row {number} of {name} {error}") from None
        yield document[place:end]
        place = _after_blank(document, end)
        if is_array and document.startswith(",", place):
            place = _after_blank(document, place + 1)
        elif is_array and not document.startswith("]", place):
            raise NoRow(f"row {number} of {name} has neither a comma nor the end of the array after it")
    if is_array and document[place:].rstrip(_SPACE) != "]":
        raise NoRow(f"the array of {name} has no end, or something after it")


def _after_blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    assert found is not None  # it may be empty
    return found.end()


def _chunks(rows: Iterable[str]) -> Iterator[list[str]]:
    """Group rows into lists of about CHUNK characters."""
    chunk: list[str] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
