"""Write files that exist either whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpretrain.errors import UserError
from vpretrain.types import Json

Lines = list[Json]


def check_writable(file: Path, setting: str) -> None:
    """Raise UserError, which names `setting`, if a file cannot be written. Leaves nothing behind but its directory."""
    there = file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
        if not there:
            file.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {file}: {error.strerror}; change {setting}") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader, now or after a crash, finds all of it, or what was there before.

    An OSError names the file; what was written of it is removed. A device or a pipe is written to as it is.
    """
    aside = path.with_name(f".{path.name}.writing")
    try:
        to = path if path.exists() and not path.is_file() else aside
        if isinstance(content, str):
            to.write_text(content, encoding="utf-8")
        else:
            to.write_bytes(content)
        if to is path:
            return
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, ValueError, or RecursionError."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Json) -> None:
    """Write JSON as `write_whole` does, a value per line."""
    write_whole(path, json.dumps(content, indent=1))


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a path to write a directory to; at the end it replaces what was at `path`, with the permissions of new files."""
    aside = path.with_name(f".{path.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        mode = stat.S_IMODE(aside.stat().st_mode)  # all that the umask leaves
        aside.rmdir()
        yield aside
        for part in [*aside.rglob("*"), aside]:
            part.chmod(mode if part.is_dir() else mode & 0o666)
            sync(part)
        remove(path)
        aside.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a directory, if there is one, so that no part of it is ever mistaken for the whole."""
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
    if path.exists():
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def size_of(directory: Path) -> int:
    """Return the bytes of the files in a directory, without links."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def follow_umask(file: Path) -> None:
    """Give a file in a new directory the permissions of a new file: some libraries leave it to its owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)  # mkdir has left out the bits that open would


def sync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(file: Path) -> Lines:
    """Return the lines of a log; empty if there is no such file."""
    if not file.exists():
        return []
    # Not str.splitlines, which also splits at separators that JSON leaves as they are in a text, such as U+2028.
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]
