"""Text files as rows of JSON, one text per row, kept and streamed by `datasets`; `rows.parse` makes fields of them.

The readers of `datasets` for JSON and CSV are not used: they guess one type per column from the values, and convert them to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import datasets
from pyarrow import Table, array, string

from vpretrain.language.data.rows import NoRow
from vpretrain.language.data.text_files import Fault, Row, file_name, rows_of_file

# Characters in a table, about. A cursor of `datasets` counts tables: another number would misplace those of earlier runs.
CHUNK = 10 * 2**20
COLUMNS = ("row", "place", "reason")  # a fault has the last two, and no row


def open_rows(
    files: Sequence[str], *, field: str | None, streaming: bool, cache: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """Open files, or URLs and globs of them, as a data set with `COLUMNS`; without streaming as a copy on disk.

    Args:
        files: of formats that `text_files` knows.
        field: the field of a document that holds its rows; None if the document is the rows.
        streaming: read row by row.
        cache: directory of the copy; None: that of `datasets`.
    """
    reader = RowReader(cache_dir=cache, data_files=list(files), **({} if field is None else {"field": field}))
    if not reader.config.data_files["train"]:  # `datasets` passes over a glob that matches nothing
        raise FileNotFoundError("no file matches")
    if streaming:
        return reader.as_streaming_dataset("train")
    reader.download_and_prepare()
    if not reader.info.splits["train"].num_examples:
        raise NoRow("it has no row")
    return reader.as_dataset("train")


@dataclass
class RowsConfig(datasets.BuilderConfig):
    """The settings that a copy on disk depends on, besides the files."""

    field: str | None = None


class RowReader(datasets.ArrowBasedBuilder):
    """Cuts files into the texts of their rows, and parses each: what is no row is found here, where its line is known."""

    BUILDER_CONFIG_CLASS = RowsConfig
    # Raise it when files give other rows than before: then copies on disk are made again.
    VERSION = datasets.Version("1.2.0")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features({name: datasets.Value("string") for name in COLUMNS}))

    def _split_generators(
        self, dl_manager: datasets.DownloadManager | datasets.StreamingDownloadManager
    ) -> list[datasets.SplitGenerator]:
        files = dl_manager.download(self.config.data_files)["train"]
        # A downloaded file has lost its name. Lists of equal length are divided among shards together.
        data = {"files": list(files), "origins": list(self.config.data_files["train"])}
        return [datasets.SplitGenerator(name="train", gen_kwargs=data)]

    def _generate_tables(self, files: Sequence[str], origins: Sequence[str]) -> Iterator[tuple[tuple[int, int], Table]]:
        for number, (file, origin) in enumerate(zip(files, origins, strict=True)):
            name = file_name(origin)
            # `datasets` puts its own `open` into the module of a reader: it opens URLs as well.
            with open(file, "rb") as binary:
                for place, rows in enumerate(_chunks(rows_of_file(binary, name, self.config.field))):
                    yield (number, place), _table(rows)


def _table(rows: Sequence[Row]) -> Table:
    columns = [
        [None if isinstance(row, Fault) else row for row in rows],
        [row.place if isinstance(row, Fault) else None for row in rows],
        [row.reason if isinstance(row, Fault) else None for row in rows],
    ]
    return Table.from_arrays([array(column, string()) for column in columns], names=list(COLUMNS))


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into lists of about CHUNK characters."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
