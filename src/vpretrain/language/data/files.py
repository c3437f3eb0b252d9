"""The files at a source's path: which they are, their common format, and how many rows they hold."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from vpretrain.errors import Missing, UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.text_files import FORMAT, file_name
from vpretrain.plain import nearest_file

_KINDS = {
    "jsonl": "JSON", "json": "JSON", "csv": "table", "tsv": "table", "txt": "text", "md": "text", "parquet": "parquet",
    "arrow": "arrow",
}  # fmt: skip
TYPED = ("parquet", "arrow")  # kinds of files that hold types, as `datasets` calls them
_FILES = ".jsonl, .json, .csv, .tsv, .txt, .md (also .gz, .bz2, .xz or .zst), .parquet or .arrow"
# What `datasets` writes beside the data of one split, and of several.
_OF_SAVED, _OF_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"


def data_files(config: SourceConfig) -> tuple[list[str], str]:
    """The files at the source's path, and their common format. Raises UserError."""
    assert config.path is not None
    path = Path(config.path).expanduser()
    if "://" in config.path:
        _check_store(config.path)
        files = [config.path]  # a glob is resolved by `datasets`
    elif path.is_dir():
        files = _files_in(path)
    elif path.is_file():
        files = [str(path)]  # its name may look like a glob: rows[1].jsonl
    else:
        files = sorted(glob.glob(str(path)))
    if not files:
        raise _nothing_at(config.path, path.parent)
    _refuse_copies(config.path, files)
    formats = {_format(file) for file in files}
    kinds = {_KINDS.get(name) for name in formats}
    kind = kinds.pop()
    if kind is None or kinds:
        if formats == {""}:
            raise UserError(f"{config.path} is of no format that is read: give a file of {_FILES}")
        raise UserError(
            f"{config.path}: files must all be of one kind, .jsonl/.json, .csv/.tsv, .txt/.md, .parquet or .arrow: name "
            "those of one, as a glob"
        )
    if config.field is not None and formats != {"json"}:
        raise UserError(f"{config.path}: field={config.field} is for .json files: leave it out")
    return files, kind


def _files_in(folder: Path) -> list[str]:
    """The data files in a folder. Raises UserError if it is one of `datasets` that holds several splits."""
    # macOS writes other files beside those of a user, as ._NAME.
    own = [file for file in sorted(folder.iterdir()) if not file.name.startswith("._")]
    names = {file.name for file in own}
    if _OF_SPLITS in names:
        splits = ", ".join(str(file) for file in own if file.is_dir())
        raise UserError(f"{folder} holds a data set of several splits: name one of {splits}")
    if names.issuperset(_OF_SAVED):
        own = [file for file in own if file.name not in _OF_SAVED]
    files = [str(file) for file in own if _format(file.name)]
    # Beside other data a Markdown file is about them.
    return [file for file in files if _format(file) != "md"] or files


def _nothing_at(path: str, folder: Path) -> Missing:
    """The error for a path without data, which names the data of the folder that may be meant."""
    there = [file.name for file in folder.iterdir() if file.is_dir() or _format(file.name)] if folder.is_dir() else []
    meant = nearest_file(Path(path), there)
    hint = f"did you mean {meant}? " if meant else ""
    return Missing(f"no data at {path}: {hint}give a file of {_FILES}, a glob, or a folder of them")


def _refuse_copies(path: str, files: Sequence[str]) -> None:
    """Raise UserError for a file that is there with and without compression: each of its rows would be read twice."""
    whole: dict[str, str] = {}  # name without compression -> file
    for file in files:
        found = FORMAT.search(file)
        name = file.removesuffix(f".{found[2]}") if found and found[2] else file
        other = whole.setdefault(name, file)
        if other != file:
            both = " and ".join(map(file_name, (other, file)))
            raise UserError(f"{path} holds {both}, so that rows would be read twice: remove one, or name a single file")


def count_in_files(files: Sequence[str], kind: str) -> int | None:
    """The number of rows in files of one format; None if it is not known without reading them."""
    if "://" in files[0]:
        return None
    if kind == "text":
        return len(files)
    if kind == "parquet":
        import pyarrow.parquet

        try:
            return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
        except pyarrow.ArrowException:  # a broken file; whoever reads it says so
            return None
    if not all(file.endswith(".jsonl") for file in files):
        return None
    count = 0
    for file in files:
        with open(file, "rb") as lines:
            count += sum(not line.isspace() for line in lines)
    return count


def row_place(config: SourceConfig, number: int, shard: int = 0, shards: int = 1) -> str:
    """Where a row is: in a file, or in the source if it is not known how many rows its files hold.

    Args:
        config: of a source of Parquet files, or of a hub data set.
        number: of the row, from 0, in all files of the shard.
        shard: number of the shard.
        shards: number of shards, which have whole files.
    """
    row = number + 1
    for file in data_files(config)[0][shard::shards] if config.path is not None else ():
        rows = count_in_files([file], "parquet")
        if rows is None:
            break
        if row <= rows:
            return f"row {row:,} of {file_name(file)}"
        row -= rows
    of = f"shard {shard} of {shards} of " if shards > 1 else ""
    return f"row {number + 1:,} of {of}{config.origin}"


def _format(file: str) -> str:
    """The format by a file's name, without compression; empty for a file that is no data."""
    name = file_name(file)
    found = FORMAT.search(name)
    return found[1] if found else next((kind for kind in TYPED if name.endswith(f".{kind}")), "")


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
