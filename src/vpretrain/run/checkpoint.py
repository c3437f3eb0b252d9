"""Checkpoints: safetensors and JSON in a directory that is written aside and renamed, so that each is whole or absent.

The last file is a manifest with the size and SHA-256 of every other: nothing is loaded that is not what was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vpretrain.errors import UserError
from vpretrain.files import remove, sync
from vpretrain.run.progress import console

Groups = dict[str, dict[str, Tensor]]
"""Named groups of named tensors: one file each."""

MANIFEST = "manifest.json"
_PLAIN: dict[str, Any] = {"style": "yellow", "markup": False, "highlight": False, "soft_wrap": True}
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json)")  # a name, and no path


def save_checkpoint(root: Path, step: int, groups: Groups, state: dict[str, Any], *, keep: int) -> Path:
    """Write `root/step-NNNNNNNN`; then, if it reads back whole, older ones go until `keep` are left.

    A step that is there already, and whole, is not written again.

    Raises:
        UserError: the disk refuses; the older checkpoints are untouched.
    """
    final = root / f"step-{step:08d}"
    if final.exists() and damage(final) is None:
        return final
    aside = root / f".writing-{step:08d}"
    try:
        for left in [*root.glob(".writing-*"), *root.glob(".*.old")]:  # by a process that was killed
            shutil.rmtree(left)
        aside.mkdir(parents=True)
        for name, tensors in groups.items():
            save_file(
                {key: value.detach().contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors"
            )
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {path.name: _described(path) for path in sorted(aside.iterdir())}
        for name in manifest:
            sync(aside / name)
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(aside / MANIFEST)
        sync(aside)
        if final.exists():
            remove(final)  # damaged
        aside.rename(final)
        sync(root)
        if found := damage(final):
            raise OSError(f"it reads back as something else: {found}")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; free space or change `output`") from error
    older = [path for path in checkpoints(root) if path < final]
    for path in older[: max(0, len(older) - (keep - 1))]:
        remove(path)
    return final


def checkpoints(root: Path) -> list[Path]:
    """All checkpoints, oldest first. Each was whole when it was written."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def damage(path: Path) -> str | None:
    """What about a checkpoint is not as it was written; None if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, described in manifest.items():
            if not _FILE.fullmatch(name):
                return f"{MANIFEST} names {name!r}, which is no file of a checkpoint"
            if _described(path / name) != described:
                return f"{name} has changed"
        if extra := {file.name for file in path.iterdir()} - {*manifest, MANIFEST}:
            return f"{min(extra)!r} is not in {MANIFEST}"
        if "state.json" not in manifest:
            return f"{MANIFEST} lacks state.json"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def load_checkpoint(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        UserError: a file is missing or damaged.
    """
    if found := damage(path):
        raise UserError(f"the checkpoint {path} is damaged: {found}; remove it to use the one before")
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        # Copies: what load_file gives is the file itself, which may go or change.
        groups = {
            file.stem: {name: tensor.clone() for name, tensor in load_file(file).items()}
            for file in sorted(path.glob("*.safetensors"))
        }
        return groups, state
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error}); remove it to use the one before") from error


def load_newest(root: Path) -> tuple[Groups, dict[str, Any]]:
    """Read the newest checkpoint that is whole, and say so if it is not the newest of all.

    Raises:
        UserError: there is none.
    """
    for path in reversed(checkpoints(root)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            console.print(f"warning: {str(error).rpartition(';')[0]}; going back to the one before", **_PLAIN)
    raise UserError(f"no checkpoint in {root} can be read: start the run anew with --overwrite")


def load_designer(designer: nn.Module, run: str) -> None:
    """Give a designer the parameters that another run's had at its newest checkpoint.

    Raises:
        UserError: that run has none, or one of another shape.
    """
    root = Path(run) / "checkpoints"
    groups = load_newest(root)[0] if checkpoints(root) else {}
    if "designer" not in groups:
        raise UserError(
            f"designer.warm_start={run} holds no checkpoint with a designer: name the directory of an arm v"
        )
    own = dict(designer.named_parameters())
    start = {name: groups["designer"].get(name) for name in own}  # buffers belong to the learner at hand
    if any(phi is None or phi.shape != own[name].shape for name, phi in start.items()):
        raise UserError(f"the designer of {run} has another shape: make the designer section like its own")
    designer.load_state_dict(start, strict=False)


def load_parameters(module: Any, tensors: dict[str, Tensor]) -> None:
    """Give trainable parameters the values that a checkpoint holds of them. Raises UserError for other names or shapes."""
    own = dict(module.named_parameters())
    if own.keys() != tensors.keys() or any(own[name].shape != value.shape for name, value in tensors.items()):
        raise UserError("the checkpoint is of another learner than the recipe's: names or shapes of parameters differ")
    for name, value in tensors.items():
        own[name].data.copy_(value)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
