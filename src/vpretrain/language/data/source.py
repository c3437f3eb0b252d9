"""Sources of examples: files, hub data sets, generators, and text that comes with Python."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vpretrain.errors import Unreadable, UserError, or_unreadable
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.example import FIRST, Example, check_fields, completed, render
from vpretrain.language.data.files import count_in_files, data_files
from vpretrain.language.data.generated import generated, python_manual
from vpretrain.language.data.load import Read, as_given, is_tables, load, located, parsed_rows, readable, refuse_faults
from vpretrain.language.data.rows import spelled
from vpretrain.types import Json

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class IndexedSource:
    """Examples by number; rows are read and rendered on access. One that cannot be read has a number, too."""

    def __init__(self, config: SourceConfig, rows: Sequence[Json] | Dataset, read: Read) -> None:
        self.config, self._rows, self._read = config, rows, read
        self._range = range(len(rows))[config.skip :][: config.limit]
        if not self._range:
            raise nothing_left(config, len(rows))

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """Return an example. Raises Unreadable."""
        number = self._range[index]
        try:
            return render(self._read(self._rows[number]), self.config)
        except Unreadable as error:
            raise located(error, self.config, _number(self._rows, number)) from None

    def outcomes(self) -> Iterator[Example | Unreadable]:
        """Iterate over the examples, with an error in place of each that cannot be read."""
        return (or_unreadable(self.__getitem__, index) for index in range(len(self)))


class StreamingSource:
    """Examples in file order, endlessly, with a cursor that can be saved; one of several disjoint shards.

    `datasets` reads the rows and keeps the position. Rows are left out here: its own filters, skips and splits lost or repeated
    rows after a resume in some releases (huggingface/datasets #7538, #8145, #8359, #8568).

    Args:
        config: of the source.
        rows: an IterableDataset of the files' rows, unfiltered.
        read: makes a row of each.
        shard: number of this shard.
        shards: number of shards. Each takes whole files if these can be divided evenly and neither `skip` nor `limit` is set,
            else every shards-th example of all files.

    Attributes:
        epoch: how often the end was reached.
    """

    def __init__(
        self, config: SourceConfig, rows: IterableDataset, read: Read, *, shard: int = 0, shards: int = 1
    ) -> None:
        self.config, self._rows, self._read = config, rows, read
        whole_files = rows.num_shards % shards == 0 and not config.skip and config.limit is None
        self._files, self._every = ((shard, shards), (0, 1)) if whole_files else ((0, 1), (shard, shards))
        self._stop = None if config.limit is None else config.skip + config.limit
        self.epoch = 0
        self._open()

    def __iter__(self) -> Iterator[Example]:
        """Iterate from here to the end, once. Raises Unreadable."""
        return map(_readable_one, self._iterator)

    def outcomes(self) -> Iterator[Example | Unreadable]:
        """Iterate from here to the end, once, with an error in place of each example that cannot be read."""
        return self._iterator

    def next(self) -> Example:
        """Return the next example.

        Raises:
            Unreadable: it cannot be read; the next call returns the one after it.
            UserError: there is none at all.
        """
        example = next(self._iterator, None)
        if example is None:
            self._open()
            self.epoch += 1
            example = next(self._iterator, None)
            if example is None:
                raise nothing_left(self.config)
        return _readable_one(example)

    def state_dict(self) -> Json:
        """The cursor, JSON-ready: the epoch, the position in its rows, and how many of these and of its examples were read."""
        rows = self._loaded or self._rows_left.state_dict()
        return {"rows": rows, "given": self._given, "met": self._met, "epoch": self.epoch}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor. The part of the current file before it is read again, as tables and not row by row."""
        self.epoch = state["epoch"]
        self._open(state["rows"], state.get("given", 0), state["met"])  # older checkpoints have no count of rows

    def _open(self, rows: Json | None = None, given: int = 0, met: int = 0) -> None:
        from datasets.distributed import split_dataset_by_node

        number, of = self._files
        self._rows_left = split_dataset_by_node(self._rows, rank=number, world_size=of)
        if rows is not None:
            self._rows_left.load_state_dict(rows)
        self._loaded = rows  # the data set's own state is stale after loading, until its next row
        self._given, self._met = given, met
        self._iterator = self._examples()

    def _examples(self) -> Iterator[Example | Unreadable]:
        first, step = self._every
        with readable(self.config):
            rows = iter(self._rows_left)
            while self._met != self._stop and (given := next(rows, None)) is not None:
                self._loaded = None
                self._given += 1
                row = or_unreadable(self._row, given)
                if row is None:
                    continue
                number = self._met - self.config.skip
                self._met += 1
                if number >= 0 and number % step == first:
                    found = row if isinstance(row, Unreadable) else or_unreadable(render, row, self.config)
                    if isinstance(found, Unreadable):
                        # An error is handed out and not raised, which would end the iteration.
                        found = located(found, self.config, self._given - 1, *self._files)
                    yield found

    def _row(self, given: Any) -> Json | None:
        """A row with its fields; None for one that is left out. Raises Unreadable."""
        row = self._read(given)
        return row if _kept(self.config, row) else None


def open_source(
    config: SourceConfig, *, shard: int = 0, shards: int = 1, skips: bool = False
) -> IndexedSource | StreamingSource:
    """Open the source that a recipe describes.

    Args:
        config: of the source.
        shard: number of this shard; a streaming source gives the examples of one.
        shards: number of shards.
        skips: whether the caller skips examples that cannot be read. They count for `skip` and `limit` like any other.

    Raises:
        UserError: it does not exist, or none of its first rows has a field that is named.
        Unreadable: an example cannot be read, unless the caller skips it. (In a streaming source only the first are looked at.)
    """
    rows: Any
    read: Read = as_given
    if config.reasoning_gym is not None:
        rows = generated(config)
    elif config.builtin is not None:
        rows = python_manual()
    else:
        rows, read = load(config)
    with readable(config):
        config = completed(config, parsed_rows(config, rows, read, skips=skips))
        # A wrong template fails now and not in the middle of a run.
        check_fields(config, parsed_rows(config, rows, read, skips=skips))
        is_made = config.path is None and config.hub is None
        if config.streaming and not is_made:
            return StreamingSource(config, rows, read, shard=shard, shards=shards)
        if not skips:
            refuse_faults(config, rows, read)
        if config.exclude or config.part:
            passes = partial(_passes, config, read)
            rows = _filtered(rows, passes) if is_made else _filtered_copy(rows, passes)
    return IndexedSource(config, rows, read)


def with_form(config: SourceConfig, *, skips: bool = False) -> SourceConfig:
    """A source that says how its rows become text: by its first ones, if it does not yet. Raises as `first_rows`."""
    return config if config.has_form else completed(config, first_rows(config, skips=skips))


def first_rows(config: SourceConfig, *, skips: bool = False) -> list[Json]:
    """The first rows of a source with path or hub, as they are, at most `FIRST`.

    Raises:
        UserError: the source cannot be read.
        Unreadable: a row cannot be read, unless such rows are skipped.
    """
    rows, read = load(config.model_copy(update={"streaming": True}))
    with readable(config):
        return list(itertools.islice(parsed_rows(config, rows, read, skips=skips), FIRST))


def count_rows(config: SourceConfig) -> int | None:
    """The maximum number of examples of a source; None if it is not known without reading them."""
    if config.path is not None:
        rows = count_in_files(*data_files(config))
    elif config.reasoning_gym is not None:
        rows = config.size
    else:
        rows = len(python_manual()) if config.builtin is not None else None
    limits = [limit for limit in (rows, config.limit) if limit is not None]
    return min(limits, default=None)


def nothing_left(config: SourceConfig, rows: int | None = None) -> UserError:
    """The error for a source without an example, which names the settings that may leave them out; `rows` before `skip`."""
    settings = [name for name in ("exclude", "part") if getattr(config, name)]
    if config.skip or not settings:
        settings.append(f"skip={config.skip}" + ("" if rows is None else f" of {rows}"))
    return UserError(f"{config.origin}: no examples are left after {' and '.join(settings)}")


def _readable_one(example: Example | Unreadable) -> Example:
    if isinstance(example, Unreadable):
        raise example
    return example


def _filtered(rows: Any, passes: Callable[[Json], bool]) -> Any:
    """The rows that pass, of a sequence that makes each anew."""
    from torch.utils.data import Subset

    return Subset(rows, [index for index in range(len(rows)) if passes(rows[index])])


def _filtered_copy(rows: Dataset, passes: Callable[[Any], bool]) -> Dataset:
    """The rows of a copy on disk that pass; `datasets` keeps which they are."""
    if not is_tables(rows):
        return rows.filter(passes)
    return rows.filter(partial(_each_passes, passes), batched=True)


def _each_passes(passes: Callable[[Any], bool], table: Any) -> list[bool]:
    return [passes(table.slice(number, 1)) for number in range(len(table))]


def _number(rows: Any, index: int) -> int:
    """The number that a row had before rows of a copy on disk were filtered."""
    kept = getattr(rows, "_indices", None)
    return index if kept is None else int(kept.column(0)[index].as_py())


def _passes(config: SourceConfig, read: Read, given: Any) -> bool:
    try:
        return _kept(config, read(given))
    except Unreadable:  # its reader is told
        return True


def _kept(config: SourceConfig, row: Json) -> bool:
    if any(re.search(pattern, spelled(row.get(field))) for field, pattern in config.exclude.items()):
        return False
    return config.part is None or render(row, config).is_in(config.part)
