"""The rows of files and hub data sets, as `datasets` gives them, and how to read one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpretrain import hub
from vpretrain.console import note
from vpretrain.errors import Missing, Unreadable, UserError, or_unreadable
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.files import TYPED, data_files, row_place
from vpretrain.language.data.rows import NoRow, no_utf8, parse
from vpretrain.language.data.text_files import NO_UTF8
from vpretrain.pretrained import first_line
from vpretrain.types import Json

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_GUESSED = {"json": "jsonl", "csv": "csv"}  # files of hub data sets that hold no types, by the builder's name

Read = Callable[[Any], Json]
"""Makes a row with its fields of what a data set gives. Raises Unreadable, perhaps without a place: see `located`."""


def load(config: SourceConfig) -> tuple[Dataset | IterableDataset, Read]:
    """The rows of a source with path or hub as a data set gives them, and how to read one. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    kwargs: Json = {"path": config.hub, "name": config.config or None, "split": config.split}
    on_hub = config.hub is not None or (config.path or "").startswith("hf://")
    with hub.access() if on_hub else contextlib.nullcontext(None) as closed, readable(config, closed):
        if config.path is not None:
            found, kind = data_files(config)
            # `datasets` takes names for globs; only those of URLs are.
            files = [file if "://" in file else glob.escape(file) for file in found]
            if kind not in TYPED:
                from vpretrain.language.data.row_reader import open_rows

                rows = open_rows(files, field=config.field, streaming=config.streaming, cache=_cache())
                return rows, partial(_parsed, config)
            kwargs = {"path": kind, "data_files": files, "split": "train"}
        rows = datasets.load_dataset(**kwargs, cache_dir=_cache(), streaming=config.streaming)
        if config.hub is not None and rows.info.builder_name in _GUESSED:
            _remark_on_types(config.hub, rows.info.builder_name)
        if rows.info.builder_name in TYPED:
            # Their texts may be any bytes. `datasets` would decode several rows at once, so it gives each as a table.
            return rows.with_format("arrow"), partial(_typed, rows.features)
        return rows, as_given


@functools.cache
def _remark_on_types(name: str, kind: str) -> None:
    """Say once that values may differ from their spelling in the files of a hub data set."""
    note(
        f"{name}: types are guessed from its {kind.upper()} files, so 2 may become 2.0, and a text a date; to read values as "
        f"they are spelled, give the files as the path: hf://datasets/{name}/FILE.{_GUESSED[kind]}"
    )


def as_given(row: Json) -> Json:
    """Read a row that has its fields already."""
    return row


def is_tables(rows: Any) -> bool:
    """Whether a copy on disk gives each row as a table."""
    return bool(rows.format["type"] == "arrow")


def parsed_rows(config: SourceConfig, rows: Iterable[Any], read: Read, *, skips: bool) -> Iterator[Json]:
    """Yield rows with their fields. Raises Unreadable unless such rows are skipped."""
    for number, given in enumerate(rows):
        row = or_unreadable(read, given)
        if not isinstance(row, Unreadable):
            yield row
        elif not skips:
            raise located(row, config, number)


def located(error: Unreadable, config: SourceConfig, number: int, shard: int = 0, shards: int = 1) -> Unreadable:
    """The error of a row, with its place; the number is that of `row_place`."""
    if error.place:
        return error
    return _unreadable(config, row_place(config, number, shard, shards), error.reason)


def refuse_faults(config: SourceConfig, rows: Any, read: Read) -> None:
    """Raise the first Unreadable of a copy on disk, without parsing rows if there is none."""
    if read is as_given:
        return
    from pyarrow import ArrowInvalid
    from pyarrow.compute import index, is_valid

    if is_tables(rows):
        try:
            rows.data.validate(full=True)  # whether texts are UTF-8, too
        except ArrowInvalid:
            deque(parsed_rows(config, rows, read, skips=False), maxlen=0)
        return
    if (first := index(is_valid(rows.data.column("reason")), True).as_py()) >= 0:
        read(rows[first])


@contextlib.contextmanager
def readable(config: SourceConfig, closed: str | None = None) -> Iterator[None]:
    """Turn any error inside the context into a UserError of one line; `closed`: why the hub cannot be asked."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets raises many types if the data are unavailable
        cause = error.__cause__ or error
        remedy = "check the name and the network, or give a path" if config.hub else "check the file"
        if config.path is not None and "://" in config.path and not isinstance(cause, NoRow):
            remedy = "check the URL, the network, and the credentials in the environment"
        if closed is not None:
            remedy = hub.remedy(closed, "give a path")
        kind = UserError if closed is None else Missing
        raise kind(f"cannot load {config.origin}: {first_line(cause)}; {remedy}") from None


@functools.cache
def _cache() -> str | None:
    """A directory for copies of rows until the process ends, if that of `datasets` cannot be written; else None."""
    import datasets

    usual = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        usual.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=usual):
            return None
    except OSError as error:
        directory = tempfile.TemporaryDirectory(prefix="vpretrain-rows-")
        atexit.register(directory.cleanup)
        note(
            f"cannot write to the cache {usual} ({error.strerror}): copies of the data are in {directory.name} until the end"
        )
        return directory.name


def _parsed(config: SourceConfig, given: Json) -> Json:
    """Parse a row of `row_reader`. Raises Unreadable."""
    if given["row"] is None:
        encoding = given["reason"].startswith(NO_UTF8)
        remedy = "save it as UTF-8, e.g. with iconv -f latin1 -t utf-8" if encoding else "check the file"
        raise _unreadable(config, given["place"], given["reason"], remedy)
    return parse(given["row"])


def _typed(features: Any, given: Any) -> Json:
    """Make values of Python of a table with one row. Raises Unreadable, without a place."""
    from datasets.formatting import PythonFormatter

    try:
        row: Json = PythonFormatter(features=features).format_row(given)
    except UnicodeDecodeError as error:
        raise no_utf8(error) from None
    return row


def _unreadable(config: SourceConfig, place: str, reason: str, remedy: str = "check the file") -> Unreadable:
    return Unreadable(f"cannot load {config.origin}: {place} {reason}; {remedy}", place, reason)
