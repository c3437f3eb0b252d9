"""Checkpoints: directories of safetensors and JSON, written under another name and then renamed, so each is whole or absent.

The last file is a manifest with the size and SHA-256 of every other: a file that has changed since is not loaded.

Several processes write one checkpoint together. Each writes its shards to `GROUP.RANK-of-SIZE.safetensors`; the rows of these
files follow each other. Any number of processes can read them, and each takes its own rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain import distributed
from vpretrain.console import warn
from vpretrain.errors import MachineError, UserError
from vpretrain.files import follow_umask, read_json, remove, sync, write_whole
from vpretrain.method.protocols import Learner
from vpretrain.types import Json

Tensors = dict[str, Mapping[str, Tensor]]
"""Named groups of named tensors: one file per group, or one per process if they are sharded."""

MANIFEST = "manifest.json"
_FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)(\.\d+-of-\d+)?\.(safetensors|json)")  # a name, not a path


def save_checkpoint(root: Path, step: int, groups: Tensors, state: Json, *, keep: int) -> Path:
    """Write `root/step-NNNNNNNN`; then, if it reads back unchanged, remove older ones until `keep` are left.

    An intact checkpoint of the same step is not written again. All processes call this together.

    Raises:
        UserError: it cannot be written; the older checkpoints are untouched.
    """
    final = root / f"step-{step:08d}"
    aside = root / f".writing-{step:08d}"
    if distributed.on_rank_0(lambda: final.exists() and damage(final) is None):
        return final
    trying = partial(partial, _try, final)
    try:
        distributed.on_rank_0(trying(_begin, root, aside))
        described = distributed.on_all_ranks(trying(_write_groups, aside, groups))
        manifest = {name: file for own in described for name, file in own.items()}
        distributed.on_rank_0(trying(_finish, root, aside, final, state, manifest))
    except UserError:
        if distributed.is_rank_0():
            shutil.rmtree(aside, ignore_errors=True)
        raise
    distributed.on_rank_0(partial(_thin_out, root, final, keep))
    return final


def _try(final: Path, act: Callable[..., Any], *arguments: object) -> Any:
    try:
        return act(*arguments)
    except (OSError, SafetensorError) as error:
        raise MachineError(f"cannot write the checkpoint {final}: {error}; free space or change `output`") from error


def _begin(root: Path, aside: Path) -> None:
    for left in [*root.glob(".writing-*"), *root.glob(".*.old")]:  # left by a killed process
        shutil.rmtree(left)
    aside.mkdir(parents=True)


def _write_groups(aside: Path, groups: Tensors) -> Json:
    """Write this process's part of the groups; return the files' descriptions."""
    described = {}
    for name, tensors in groups.items():
        sharded = any(isinstance(value, DTensor) for value in tensors.values())
        own = {
            key: (value.to_local() if isinstance(value, DTensor) else value).detach().contiguous()
            for key, value in tensors.items()
            if isinstance(value, DTensor) or distributed.is_rank_0()
        }
        if sharded or distributed.is_rank_0():
            of = f".{distributed.rank()}-of-{distributed.size()}" if sharded else ""
            file = aside / f"{name}{of}.safetensors"
            save_file(own, file)
            follow_umask(file)
            sync(file)
            described[file.name] = _described(file)
    return described


def _finish(root: Path, aside: Path, final: Path, state: Json, manifest: Json) -> None:
    write_whole(aside / "state.json", json.dumps(state))
    manifest["state.json"] = _described(aside / "state.json")
    write_whole(aside / MANIFEST, json.dumps(manifest, sort_keys=True, indent=1))
    if final.exists():
        remove(final)  # damaged
    aside.rename(final)
    sync(root)
    if found := damage(final):
        raise OSError(f"it reads back as something else: {found}")


def _thin_out(root: Path, final: Path, keep: int) -> None:
    older = [path for path in checkpoints(root) if path < final]
    for path in older[: max(0, len(older) - (keep - 1))]:
        remove(path)


def checkpoints(root: Path) -> list[Path]:
    """Return all checkpoints, oldest first. Each was whole when it was written."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def damage(path: Path) -> str | None:
    """Describe how a checkpoint differs from what was written; None if it is intact."""
    try:
        manifest = read_json(path / MANIFEST)
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


def load_checkpoint(path: Path) -> tuple[Tensors, Json]:
    """Read a checkpoint; all processes call this together. Raises UserError in all if a file is missing or damaged in any."""
    if found := distributed.on_rank_0(lambda: damage(path)):
        raise UserError(f"the checkpoint {path} is damaged: {found}; remove it to use the one before")
    read: tuple[Tensors, Json] | None = None
    reason: str | None = None
    try:
        read = _read_all(path)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = str(error)
    reasons = [one for one in distributed.all_gather(reason) if one is not None]
    if read is None or reasons:  # else one process would go on from here, and another from the one before
        raise UserError(f"the checkpoint {path} cannot be read ({reasons[0]}); remove it to use the one before")
    return read


def _read_all(path: Path) -> tuple[Tensors, Json]:
    state = read_json(path / "state.json")
    files: dict[str, list[Path]] = {}
    for file in map(Path, read_json(path / MANIFEST)):  # a shared disk may list less, and then one cannot be read
        if file.suffix == ".safetensors":
            files.setdefault(file.name.split(".")[0], []).append(path / file)
    return {name: _read(own) for name, own in sorted(files.items())}, state


def load_newest(root: Path) -> tuple[Tensors, Json]:
    """Read the newest intact checkpoint, and warn of each newer one that is damaged. Raises UserError if there is none."""
    for path in reversed(distributed.broadcast(checkpoints(root))):  # a shared disk may show others a process less
        try:
            return load_checkpoint(path)
        except UserError as error:
            warn(f"warning: {str(error).rpartition(';')[0]}; going back to the one before")
    raise UserError(f"no checkpoint in {root} can be read: start the run anew with --overwrite")


def load_designer(designer: nn.Module, run: str) -> None:
    """Load a designer's parameters from another run's newest checkpoint. Raises UserError if it has none, or another shape."""
    root = Path(run) / "checkpoints"
    groups = load_newest(root)[0] if distributed.broadcast(checkpoints(root)) else {}
    if "designer" not in groups:
        raise UserError(
            f"designer.warm_start={run} holds no checkpoint with a designer: name the run of an arm with a designer"
        )
    own = dict(designer.named_parameters())
    start = {name: groups["designer"].get(name) for name in own}  # buffers belong to the present learner
    if any(phi is None or phi.shape != own[name].shape for name, phi in start.items()):
        raise UserError(f"the designer of {run} has another shape: make the designer section like its own")
    designer.load_state_dict(start, strict=False)


def load_parameters(module: Learner | nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's values into trainable parameters. Raises UserError for other names or shapes."""
    load_tensors({name: p.data for name, p in module.named_parameters()}, tensors)


def load_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's values into tensors, sharded or not. Raises UserError for other names or shapes."""
    if own.keys() != tensors.keys() or any(own[name].shape != value.shape for name, value in tensors.items()):
        raise UserError(
            "the checkpoint is of another learner or designer than the recipe's: names or shapes of parameters differ"
        )
    for name, value in tensors.items():
        own[name].copy_(placed(value, own[name]))


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a checkpoint's tensor with the device, dtype and sharding of another tensor."""
    if isinstance(like, DTensor):  # each process has read the whole tensor: no communication
        value = value.to(like.device, like.dtype)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like)


class _Shards(Mapping[str, Tensor]):
    """Tensors whose rows are in several files; each is assembled on access, so that only that one is in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, list[Path]] = {}
        for file in sorted(files, key=lambda file: int(file.name.split(".")[1].split("-")[0])):
            for name in list(safe_open(file, "pt").keys()):
                self._files.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        parts = [safe_open(file, "pt").get_tensor(name) for file in self._files[name]]
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read(files: Sequence[Path]) -> Mapping[str, Tensor]:
    if len(files) > 1:
        return _Shards(files)
    # Copies: load_file returns views of the file, which may be removed or changed.
    return {name: tensor.clone() for name, tensor in load_file(files[0]).items()}


def _described(path: Path) -> Json:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
