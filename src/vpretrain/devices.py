"""Devices by name, refused before anything is loaded if this machine does not have them."""

from __future__ import annotations

import functools

import torch

from vpretrain import metal
from vpretrain.console import note
from vpretrain.errors import UserError


def available(name: str) -> torch.device:
    """Return a device of this machine; auto: cuda if there is one, else cpu. Raises UserError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _has(name):
        raise UserError(
            f"learner.device={name}: this machine, or this build of PyTorch, has none; use learner.device=auto"
        )
    device = torch.device(name)
    if device.type == "mps":
        _note_once(metal.remark())
    return device


@functools.cache
def _note_once(text: str) -> None:
    note(text)


def _has(name: str) -> bool:
    try:
        device = torch.device(name)
        if device.type == "cuda":  # counted, as an allocation would hold memory there for as long as the process lives
            return (device.index or 0) < torch.cuda.device_count()
        torch.empty(0, device=device)
    except Exception:  # each backend has its own types
        return False
    return True
