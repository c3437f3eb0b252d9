"""Sources of examples: files, hub data sets, generators, and text that comes with Python."""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import itertools
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vpretrain import hub
from vpretrain.console import note
from vpretrain.errors import Unreadable, UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.example import FIRST, Example, check_fields, completed, render
from vpretrain.language.data.rows import NoRow, parse, spelled
from vpretrain.language.data.text_files import FORMAT, file_name
from vpretrain.pretrained import first_line
from vpretrain.types import Json

Read = Callable[[Json], Json]
"""Makes a row with its fields of what a data set gives."""

_KINDS = {"jsonl": "JSON", "json": "JSON", "csv": "table", "tsv": "table", "txt": "text"}
_FILES = ".jsonl, .json, .csv, .tsv, .txt (also .gz, .bz2, .xz or .zst) or .parquet"


class IndexedSource:
    """Examples by number; rows are read and rendered on access. One that cannot be read has a number, too."""

    def __init__(self, config: SourceConfig, rows: Any, read: Read) -> None:
        self.config, self._rows, self._read = config, rows, read
        self._range = range(len(rows))[config.skip :][: config.limit]
        if not self._range:
            raise UserError(f"{config.origin}: no examples are left after skip={config.skip} of {len(rows)}")

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """Return an example. Raises Unreadable."""
        return render(self._read(self._rows[self._range[index]]), self.config)

    def outcomes(self) -> Iterator[Example | Unreadable]:
        """Iterate over the examples, with an error in place of each that cannot be read."""
        for index in range(len(self)):
            try:
                yield self[index]
            except Unreadable as error:
                yield error


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

    def __init__(self, config: SourceConfig, rows: Any, read: Read, *, shard: int = 0, shards: int = 1) -> None:
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
                raise UserError(f"{self.config.origin}: no examples are left after skip={self.config.skip}")
        return _readable_one(example)

    def state_dict(self) -> Json:
        """The cursor, JSON-ready: the epoch, the position in the rows, and how many of this epoch's examples were read."""
        return {"rows": self._loaded or self._rows_left.state_dict(), "met": self._met, "epoch": self.epoch}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor. The part of the current file before it is read again, as tables and not row by row."""
        self.epoch = state["epoch"]
        self._open(state["rows"], state["met"])

    def _open(self, rows: Json | None = None, met: int = 0) -> None:
        from datasets.distributed import split_dataset_by_node

        number, of = self._files
        self._rows_left = split_dataset_by_node(self._rows, rank=number, world_size=of)
        if rows is not None:
            self._rows_left.load_state_dict(rows)
        self._loaded, self._met = rows, met  # the data set's own state is stale after loading, until its next row
        self._iterator = self._examples()

    def _examples(self) -> Iterator[Example | Unreadable]:
        first, step = self._every
        with _readable(self.config):
            rows = iter(self._rows_left)
            while self._met != self._stop and (given := next(rows, None)) is not None:
                self._loaded = None
                row = _outcome(self._read, given)
                if isinstance(row, Unreadable) or _kept(self.config, row):
                    number = self._met - self.config.skip
                    self._met += 1
                    if number >= 0 and number % step == first:
                        # An error is handed out and not raised, which would end the iteration.
                        yield row if isinstance(row, Unreadable) else render(row, self.config)


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
    read: Read = _as_given
    if config.reasoning_gym is not None:
        rows = _generated(config)
    elif config.builtin is not None:
        rows = _python_manual()
    else:
        rows, read = _load(config)
    with _readable(config):
        config = completed(config, _parsed_rows(rows, read, skips=skips))
        # A wrong template fails now and not in the middle of a run.
        check_fields(config, _parsed_rows(rows, read, skips=skips))
        if config.streaming and (config.path is not None or config.hub is not None):
            return StreamingSource(config, rows, read, shard=shard, shards=shards)
        if not skips:
            _refuse_faults(rows, read)
        if config.exclude or config.part:
            passes = partial(_passes, config, read)
            rows = _Chosen(rows, passes) if config.path is None and config.hub is None else rows.filter(passes)
    return IndexedSource(config, rows, read)


def with_form(config: SourceConfig, *, skips: bool = False) -> SourceConfig:
    """A source that says how its rows become text: by its first ones, if it does not yet. Raises as `first_rows`."""
    return config if config.has_form else completed(config, first_rows(config, FIRST, skips=skips))


def first_rows(config: SourceConfig, count: int, *, skips: bool = False) -> list[Json]:
    """The first rows of a source with path or hub, as they are.

    Args:
        config: of the source.
        count: maximum number of rows.
        skips: whether rows that cannot be read are skipped.

    Raises:
        UserError: the source cannot be read.
        Unreadable: a row cannot be read, and is not skipped.
    """
    rows, read = _load(config.model_copy(update={"streaming": True}))
    with _readable(config):
        return list(itertools.islice(_parsed_rows(rows, read, skips=skips), count))


def count_rows(config: SourceConfig) -> int | None:
    """The maximum number of examples of a source; None if it is not known without reading them."""
    if config.path is not None:
        rows = _count_in_files(*data_files(config))
    elif config.reasoning_gym is not None:
        rows = config.size
    else:
        rows = len(_python_manual()) if config.builtin is not None else None
    limits = [limit for limit in (rows, config.limit) if limit is not None]
    return min(limits, default=None)


def data_files(config: SourceConfig) -> tuple[list[str], str]:
    """The files at the source's path, and their common format. Raises UserError."""
    assert config.path is not None
    path = Path(config.path).expanduser()
    if "://" in config.path:
        _check_store(config.path)
        files = [config.path]  # a glob is resolved by `datasets`
    elif path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if _kind(file.name))
    else:
        files = sorted(glob.glob(str(path)))
    if not files:
        raise UserError(f"no data at {config.path}: give a file of {_FILES}, a glob, or a folder of them")
    kind = _kind(files[0])
    if kind is None or any(_kind(file) != kind for file in files):
        raise UserError(f"{config.path}: files must all be of one kind, .jsonl/.json, .csv/.tsv, .parquet or .txt")
    if config.field is not None and not all(_is_document(file) for file in files):
        raise UserError(f"{config.path}: field={config.field} is for .json files: leave it out")
    return files, kind


def _kind(file: str) -> str | None:
    name = file_name(file)
    if name.endswith(".parquet"):
        return "parquet"
    found = FORMAT.search(name)
    return None if found is None else _KINDS[found[1]]


def _is_document(file: str) -> bool:
    found = FORMAT.search(file_name(file))
    return found is not None and found[1] == "json"


def _check_store(url: str) -> None:
    """Raise UserError if a URL holds a name or password, or if the package that reads it is not installed."""
    from fsspec.registry import get_filesystem_class, known_implementations

    protocol, _, rest = url.partition("://")
    if "@" in rest.split("/")[0]:
        raise UserError(f"a {protocol}:// path holds a name or password: leave it out and set it in the environment")
    try:
        get_filesystem_class(protocol)
    except ImportError:
        package = known_implementations[protocol]["class"].split(".")[0]
        raise UserError(f"{protocol}:// paths need a package: pip install {package}") from None
    except ValueError:
        raise UserError(f"{url}: nothing reads {protocol}://; use s3://, gs://, hf://, https:// or a path") from None


def _count_in_files(files: Sequence[str], kind: str) -> int | None:
    if "://" in files[0]:
        return None
    if kind == "text":
        return len(files)
    if kind == "parquet":
        import pyarrow.parquet

        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    if not all(file.endswith(".jsonl") for file in files):
        return None
    count = 0
    for file in files:
        with open(file, "rb") as lines:
            count += sum(not line.isspace() for line in lines)
    return count


def _load(config: SourceConfig) -> tuple[Any, Read]:
    """The rows of files or of a hub data set as a data set gives them, and how to read one."""
    import datasets

    datasets.disable_progress_bars()
    how: Json = {"path": config.hub, "name": config.config or None, "split": config.split}
    on_hub = config.hub is not None or (config.path or "").startswith("hf://")
    with hub.access() if on_hub else contextlib.nullcontext(None) as closed, _readable(config, closed):
        if config.path is not None:
            files, kind = data_files(config)
            if kind != "parquet":
                from vpretrain.language.data.row_reader import open_rows

                rows = open_rows(files, field=config.field, streaming=config.streaming, cache=_cache())
                return rows, partial(_parsed, config)
            how = {"path": kind, "data_files": files, "split": "train"}
        return datasets.load_dataset(**how, cache_dir=_cache(), streaming=config.streaming), _as_given


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


def _as_given(row: Json) -> Json:
    return row


def _parsed(config: SourceConfig, given: Json) -> Json:
    """Parse a row of `row_reader`. Raises Unreadable."""
    if given["row"] is None:
        place, reason = given["place"], given["reason"]
        raise Unreadable(f"cannot load {config.origin}: {place} {reason}; check the file", place, reason)
    return parse(given["row"])


def _outcome(read: Read, given: Json) -> Json | Unreadable:
    try:
        return read(given)
    except Unreadable as error:
        return error


def _readable_one(example: Example | Unreadable) -> Example:
    if isinstance(example, Unreadable):
        raise example
    return example


def _parsed_rows(rows: Any, read: Read, *, skips: bool) -> Iterator[Json]:
    """Yield rows with their fields. Raises Unreadable unless such rows are skipped."""
    for given in rows:
        row = _outcome(read, given)
        if not isinstance(row, Unreadable):
            yield row
        elif not skips:
            raise row


def _refuse_faults(rows: Any, read: Read) -> None:
    """Raise the first Unreadable of a copy on disk, without parsing the other rows."""
    if read is _as_given:  # not of `row_reader`
        return
    from pyarrow.compute import index, is_valid

    if (first := index(is_valid(rows.data.column("reason")), True).as_py()) >= 0:
        read(rows[first])


@contextlib.contextmanager
def _readable(config: SourceConfig, closed: str | None = None) -> Iterator[None]:
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
        raise UserError(f"cannot load {config.origin}: {first_line(cause)}; {remedy}") from None


def _passes(config: SourceConfig, read: Read, given: Json) -> bool:
    row = _outcome(read, given)
    return isinstance(row, Unreadable) or _kept(config, row)


def _kept(config: SourceConfig, row: Json) -> bool:
    if any(re.search(pattern, spelled(row.get(field))) for field, pattern in config.exclude.items()):
        return False
    return config.part is None or render(row, config).is_in(config.part)


def _python_manual() -> Sequence[Json]:
    from pydoc_data import topics

    return [{"topic": name, "text": text} for name, text in sorted(topics.topics.items())]


class _Generated:
    """A reasoning-gym data set as flat rows."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Json:
        entry = self._dataset[index]
        scalars = {k: v for k, v in entry["metadata"].items() if isinstance(v, str | int | float)}
        return {"answer_cot": entry["answer"], **scalars, "question": entry["question"], "answer": entry["answer"]}


class _Chosen:
    """The rows that pass, of a sequence that makes each anew."""

    def __init__(self, rows: Sequence[Json] | _Generated, passes: Callable[[Json], bool]) -> None:
        self._rows = rows
        self._indices = [index for index in range(len(rows)) if passes(rows[index])]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Json:
        return self._rows[self._indices[index]]


def _generated(config: SourceConfig) -> _Generated:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError('reasoning_gym sources need a package: pip install "vpretrain[quickstart]"') from None
    options: Json = {"seed": 0} | config.options
    templates = options.pop("task_indices", None)
    try:
        dataset = reasoning_gym.create_dataset(config.reasoning_gym, size=config.size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        reason = str(error).strip()
        raise UserError(f"reasoning_gym {config.reasoning_gym}: {reason}; check the name and the options") from None
    if templates is not None:
        dataset.task_indices = _choose_templates(config, templates, options["seed"])
    return _Generated(dataset)


def _choose_templates(config: SourceConfig, templates: list[int], seed: int) -> list[int]:
    """The template of every example: gsm_symbolic draws them from all templates, here from the allowed ones only."""
    if config.reasoning_gym != "gsm_symbolic":
        raise UserError(f"task_indices is an option of gsm_symbolic; {config.reasoning_gym} has no templates")
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    wrong = sorted(set(templates) - set(tasks_ok))
    if wrong or not templates:
        raise UserError(f"gsm_symbolic has no templates {wrong}; task_indices must be among {sorted(tasks_ok)}")
    return random.Random(seed).choices(templates, k=config.size)
