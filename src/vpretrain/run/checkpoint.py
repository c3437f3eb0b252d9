"""Checkpoints: safetensors and JSON in a directory that is written aside and renamed, so that each is whole or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vpretrain.errors import UserError

Groups = dict[str, dict[str, Tensor]]
"""Named groups of named tensors: one file each."""


def save_checkpoint(root: Path, step: int, groups: Groups, state: dict[str, Any], *, keep: int) -> Path:
    """Write `root/step-NNNNNNNN`; afterwards only the newest `keep` remain.

    Raises:
        UserError: the disk refuses; the older checkpoints are untouched.
    """
    final = root / f"step-{step:08d}"
    aside = root / f".writing-{step:08d}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in groups.items():
            save_file(
                {key: value.detach().contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors"
            )
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in [*aside.iterdir(), aside]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; free space or change `output`") from error
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(root: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def load_checkpoint(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}, state
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error}); remove it to use the one before") from error


def load_designer(designer: nn.Module, run: str) -> None:
    """Give a designer the parameters that another run's had at its newest checkpoint.

    Raises:
        UserError: that run has none, or one of another shape.
    """
    saved = checkpoints(Path(run) / "checkpoints")
    groups = load_checkpoint(saved[-1])[0] if saved else {}
    if "designer" not in groups:
        raise UserError(
            f"designer.warm_start={run} holds no checkpoint with a designer: name the directory of an arm v"
        )
    own = dict(designer.named_parameters())
    start = {name: groups["designer"].get(name) for name in own}  # buffers belong to the learner at hand
    if any(phi is None or phi.shape != own[name].shape for name, phi in start.items()):
        raise UserError(f"the designer of {run} has another shape: make the designer section like its own")
    designer.load_state_dict(start, strict=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
