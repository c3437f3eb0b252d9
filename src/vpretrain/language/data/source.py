"""Sources of examples: files, hub data sets, generators, and text that comes with Python; rows become text by templates."""

from __future__ import annotations

import contextlib
import difflib
import glob
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.pretrained import first_line
from vpretrain.types import Json

_FORMATS = {
    ".jsonl": "json", ".json": "json", ".jsonl.gz": "json", ".json.gz": "json", ".parquet": "parquet", ".txt": "text",
}  # fmt: skip
KEY_DIGITS = 16  # hexadecimal
_FIELD = re.compile(r"\{([\w-]+)(?:\.(\d+))?\}")


@dataclass(frozen=True)
class Example:
    """One document, or one prompt with its response.

    Attributes:
        prompt: empty for raw text.
        response: the text that the loss is on.
        domain: of its source.
        problem: the field values in the prompt's template (or the text's), without the text around them.
        solution: the field values in the response's template; empty for raw text.
        fields: the row it came from.
    """

    prompt: str
    response: str
    domain: str
    problem: str
    solution: str
    fields: Json

    @cached_property
    def key(self) -> str:
        """Identity of the problem: equal for problems that differ in case and white space only."""
        return hashlib.sha256(" ".join(self.problem.casefold().split()).encode()).hexdigest()[:KEY_DIGITS]


class IndexedSource:
    """Examples by number; rows are rendered on access."""

    def __init__(self, config: SourceConfig, rows: Any) -> None:
        self.config, self._rows = config, rows
        self._range = range(len(rows))[config.skip :][: config.limit]
        if not self._range:
            raise UserError(f"{config.origin}: no examples are left after skip={config.skip} of {len(rows)}")

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        return render(self._rows[self._range[index]], self.config)


class StreamingSource:
    """Examples in file order, endlessly, with a cursor that can be saved; one of several disjoint shards.

    `datasets` reads the rows and keeps the position. Rows are left out here: its own filters, skips and splits lost or repeated
    rows after a resume in some releases (huggingface/datasets #7538, #8145, #8359, #8568).

    Args:
        config: of the source.
        rows: an IterableDataset of the files' rows, unfiltered.
        shard: number of this shard.
        shards: number of shards. Each takes whole files if these can be divided evenly and neither `skip` nor `limit` is set,
            else every shards-th example of all files.
    """

    def __init__(self, config: SourceConfig, rows: Any, *, shard: int = 0, shards: int = 1) -> None:
        self.config, self._rows = config, rows
        whole_files = rows.num_shards % shards == 0 and not config.skip and config.limit is None
        self._files, self._every = ((shard, shards), (0, 1)) if whole_files else ((0, 1), (shard, shards))
        self._stop = None if config.limit is None else config.skip + config.limit
        self._open()

    def __iter__(self) -> Iterator[Example]:
        """Iterate from here to the end, once."""
        return self._iterator

    def next(self) -> Example:
        """Return the next example. Raises UserError if there is none at all."""
        example = next(self._iterator, None)
        if example is None:
            self._open()
            example = next(self._iterator, None)
            if example is None:
                raise UserError(f"{self.config.origin}: no examples are left after skip={self.config.skip}")
        return example

    def state_dict(self) -> Json:
        """The cursor, JSON-ready: the position in the rows, and how many of this epoch's examples were read."""
        return {"rows": self._loaded or self._epoch.state_dict(), "met": self._met}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor. The part of the current file before it is read again, as tables and not row by row."""
        self._open(state["rows"], state["met"])

    def _open(self, rows: Json | None = None, met: int = 0) -> None:
        from datasets.distributed import split_dataset_by_node

        number, of = self._files
        self._epoch = split_dataset_by_node(self._rows, rank=number, world_size=of)
        if rows is not None:
            self._epoch.load_state_dict(rows)
        self._loaded, self._met = rows, met  # the data set's own state is stale after loading, until its next row
        self._iterator = self._examples()

    def _examples(self) -> Iterator[Example]:
        first, step = self._every
        with _readable(self.config):
            rows = iter(self._epoch)
            while self._met != self._stop and (row := next(rows, None)) is not None:
                self._loaded = None
                if _kept(self.config, row):
                    number = self._met - self.config.skip
                    self._met += 1
                    if number >= 0 and number % step == first:
                        yield render(row, self.config)


def open_source(config: SourceConfig, *, shard: int = 0, shards: int = 1) -> IndexedSource | StreamingSource:
    """Open the source that a recipe describes; a streaming source gives the examples of one shard.

    Raises:
        UserError: it does not exist, or its rows lack the fields that the templates name.
    """
    rows: Any
    if config.reasoning_gym is not None:
        rows = _generated(config)
    elif config.builtin is not None:
        rows = _python_manual()
    else:
        rows = _load(config)
        if config.streaming:
            return StreamingSource(config, rows, shard=shard, shards=shards)
    source = IndexedSource(config, rows)
    source[0]  # a wrong template fails now and not in the middle of a run
    return source


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


def templates(row: Json, config: SourceConfig) -> dict[str, str]:
    """The source's templates (text, or prompt and response), or the defaults for rows like this. Raises UserError."""
    if config.text is not None:
        return {"text": config.text}
    if config.prompt is not None and config.response is not None:
        return {"prompt": config.prompt, "response": config.response}
    if config.reasoning_gym is not None:
        return {"prompt": "Question: {question}\nAnswer:", "response": " {answer_cot}"}
    if "text" in row:
        return {"text": "{text}"}
    raise UserError(f"{config.origin}: give text, or prompt and response; its fields are {', '.join(row)}")


def render(row: Json, config: SourceConfig) -> Example:
    """Build an example from a row by the source's templates. Raises UserError for a field that the row lacks."""
    renamed = {field: names.get(str(row[field]), row[field]) for field, names in config.values.items() if field in row}
    row = row | renamed
    chosen = templates(row, config)
    if "text" in chosen:
        text, content = _fill(chosen["text"], row, config)
        return Example("", text, config.domain, content, "", row)
    prompt, problem = _fill(chosen["prompt"], row, config)
    response, solution = _fill(chosen["response"], row, config)
    return Example(prompt, response, config.domain, problem, solution, row)


def _fill(template: str, row: Json, config: SourceConfig) -> tuple[str, str]:
    """Fill a template; return the text, and the values filled in. A line that held only an empty field disappears."""
    contents: list[str] = []

    def value(match: re.Match[str]) -> str:
        name, place = match[1], match[2]
        if name not in row:
            nearest = difflib.get_close_matches(name, list(row), n=1, cutoff=0.4)
            hint = f": did you mean {{{nearest[0]}}}?" if nearest else ""
            raise UserError(
                f"{config.origin}: no field '{name}' for the template {template!r}{hint} (fields: {', '.join(row)})"
            )
        found = row[name]
        if place is not None:
            if not isinstance(found, list) or int(place) >= len(found):
                raise UserError(f"{config.origin}: {{{name}.{place}}} in {template!r}: '{name}' is {str(found)[:80]!r}")
            found = found[int(place)]
        contents.append("" if found is None else str(found))
        return contents[-1]

    lines = []
    for line in template.splitlines(keepends=True):
        filled = _FIELD.sub(value, line)
        if filled.strip() or not _FIELD.search(line):
            lines.append(filled)
    return "".join(lines), " ".join(contents)


def data_files(config: SourceConfig) -> tuple[list[str], str]:
    """The files at the source's path, and their common format. Raises UserError."""
    assert config.path is not None
    path = Path(config.path).expanduser()
    if "://" in config.path:
        _check_store(config.path)
        files = [config.path]  # a glob is resolved by `datasets`
    elif path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if _format(file.name))
    else:
        files = sorted(glob.glob(str(path)))
    if not files:
        raise UserError(
            f"no data at {config.path}: give a .jsonl, .json, .parquet or .txt file, a glob, or a folder of them"
        )
    kind = _format(files[0])
    if kind is None or any(_format(file) != kind for file in files):
        raise UserError(f"{config.path}: files must all be of one kind, .jsonl/.json, .parquet or .txt")
    return files, kind


def _format(file: str) -> str | None:
    name = file.split("?")[0] if file.startswith("http") else file
    return next((kind for ending, kind in _FORMATS.items() if name.endswith(ending)), None)


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
            count += sum(block.count(b"\n") for block in iter(partial(lines.read, 2**20), b""))
    return count


def _load(config: SourceConfig) -> Any:
    """The rows of files or of a hub data set."""
    import datasets

    name = config.hub
    options: Json = {"name": config.config or None, "split": config.split}
    if config.path is not None:
        files, name = data_files(config)
        options = {"data_files": files, "split": "train"}
        if name == "text":
            options["sample_by"] = "document"
    datasets.disable_progress_bars()
    with _readable(config):
        rows = datasets.load_dataset(name, streaming=config.streaming, **options)
        if config.streaming or not (config.exclude or config.part):
            return rows
        return rows.filter(partial(_kept, config))


@contextlib.contextmanager
def _readable(config: SourceConfig) -> Iterator[None]:
    """Turn any error inside the context into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets raises many types if the data are unavailable
        remedy = "check the name and the network, or give a path" if config.hub else "check the file"
        if config.path is not None and "://" in config.path:
            remedy = "check the URL, the network, and the credentials in the environment"
        raise UserError(f"cannot load {config.origin}: {first_line(error.__cause__ or error)}; {remedy}") from None


def _kept(config: SourceConfig, row: Json) -> bool:
    for field, pattern in config.exclude.items():
        if field not in row:
            raise UserError(f"{config.origin}: no field '{field}' for exclude (fields: {', '.join(row)})")
        if pattern.search(str(row[field])):
            return False
    if config.part is None:
        return True
    low, high = config.part
    return low <= int(render(row, config).key, 16) / 16**KEY_DIGITS < high


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
