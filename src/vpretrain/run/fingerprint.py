"""Fingerprints of data: a hash of local files, the revision of a hub data set, or the arguments of a generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vpretrain import hub
from vpretrain.console import working
from vpretrain.types import Json

MOST = 2**30  # bytes of a source that are read, at most
_END = 2**20
_PIECE = 2**20


def of_files(files: Sequence[Path], root: Path | None = None) -> Json:
    """Return the number of local files, their bytes and their SHA-256. Raises OSError if one is gone.

    For one file the hash is what `sha256sum` prints; for several, the hash of the lines that it prints for them under `root`.
    Above a gigabyte only both ends of each file are read, a megabyte or less of each, and `of` has the amount.
    """
    sizes = [file.stat().st_size for file in files]
    end = None if sum(sizes) <= MOST else min(_END, MOST // (2 * len(files)))
    to_read = sum(sizes) if end is None else sum(min(size, 2 * end) for size in sizes)
    hashes, read = [], 0
    with working(
        f"hashing {files[0].name if len(files) == 1 else f'{len(files)} files'}", lambda: read / max(1, to_read)
    ):
        for file in files:
            hashed = hashlib.sha256()
            for piece in _pieces(file, end):
                hashed.update(piece)
                read += len(piece)
            hashes.append(hashed.hexdigest())
    if len(files) == 1:
        digest = hashes[0]
    else:
        names = [file.relative_to(root or file.parent).as_posix() for file in files]
        lines = "".join(f"{one}  {name}\n" for one, name in zip(hashes, names, strict=True))
        digest = hashlib.sha256(lines.encode()).hexdigest()
    of = {} if end is None else {"of": f"the first and the last {end:,} bytes of each file"}
    return {"files": len(files), "bytes": sum(sizes), "sha256": digest, **of}


def of_hub(name: str, config: str | None, split: str) -> Json:
    """Return the revision of a hub data set and its number of rows; both None if they are not available."""
    import datasets

    found: Json = {"hub": name, "config": config, "split": split, "revision": None, "rows": None}
    try:
        with working(f"asking the hub for {name}"), hub.access():
            builder = datasets.load_dataset_builder(name, config)
        splits = builder.info.splits or {}
        return found | {"revision": builder.hash, "rows": splits[split].num_examples if split in splits else None}
    except Exception:  # datasets raises many exception types if the data are not available
        return found


def generated(package: str, **asked: object) -> Json:
    """Return the arguments of generated data, and the package that made it."""
    try:
        return {**asked, "package": f"{package} {version(package)}"}
    except PackageNotFoundError:
        return {**asked, "package": package}


def _pieces(file: Path, end: int | None) -> Iterator[bytes]:
    """Yield the bytes of a file in order; `end`: only so many from each of its ends, and none twice."""
    with file.open("rb") as opened:
        if end is None:
            while piece := opened.read(_PIECE):
                yield piece
        else:
            yield opened.read(end)
            opened.seek(max(opened.tell(), file.stat().st_size - end))
            yield opened.read()
