"""What identifies data: a hash of local files, the revision of a hub data set, or what a generator was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MOST = 2**30  # bytes of a source that are read
_END = 2**20


def of_files(files: Sequence[Path], root: Path | None = None) -> dict[str, Any]:
    """Of local files: how many, their bytes, and SHA-256.

    Of one file it is what `sha256sum` prints; of several, the hash of the lines which it prints for them under `root`.
    Of more than a gigabyte only both ends of each file are read, a megabyte or less of each, and `of` says how much.

    Raises:
        OSError: a file is gone.
    """
    sizes = [file.stat().st_size for file in files]
    end = None if sum(sizes) <= MOST else min(_END, MOST // (2 * len(files)))
    hashes = [_sha256(file, end) for file in files]
    if len(files) == 1:
        digest = hashes[0]
    else:
        names = [file.relative_to(root or file.parent).as_posix() for file in files]
        lines = "".join(f"{one}  {name}\n" for one, name in zip(hashes, names, strict=True))
        digest = hashlib.sha256(lines.encode()).hexdigest()
    of = {} if end is None else {"of": f"the first and the last {end:,} bytes of each file"}
    return {"files": len(files), "bytes": sum(sizes), "sha256": digest, **of}


def of_hub(name: str, config: str | None, split: str) -> dict[str, Any]:
    """Of a hub data set: its revision, and how many rows it has; both None where they cannot be had."""
    import datasets

    found: dict[str, Any] = {"hub": name, "config": config, "split": split, "revision": None, "rows": None}
    try:
        builder = datasets.load_dataset_builder(name, config)
        splits = builder.info.splits or {}
        return found | {"revision": builder.hash, "rows": splits[split].num_examples if split in splits else None}
    except Exception:  # datasets raises many kinds for one thing: the data cannot be had
        return found


def generated(package: str, **asked: Any) -> dict[str, Any]:
    """Of generated data: what was asked for, and the package that made it."""
    try:
        return {**asked, "package": f"{package} {version(package)}"}
    except PackageNotFoundError:
        return {**asked, "package": package}


def _sha256(file: Path, end: int | None) -> str:
    with file.open("rb") as opened:
        if end is None:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        ends = hashlib.sha256(opened.read(end))
        opened.seek(max(opened.tell(), file.stat().st_size - end))
        ends.update(opened.read())
        return ends.hexdigest()
