"""When, by which source and on what hardware a run was made: what its numbers depend on beside recipe, data and versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from vpretrain.types import Json

_SOURCE = Path(__file__).parents[1]
_PATIENCE_SECONDS = 10


def circumstances(made_by: str | None) -> Json:
    """Return date (UTC, ISO 8601), commit and hardware, without any name of a host or user.

    Args:
        made_by: the commit, as it was when the run began: the source may have changed since.
    """
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": made_by, "hardware": hardware()}


def commit(source: Path = _SOURCE) -> str | None:
    """Return the commit of vpretrain's source, with a + if files have changed since; None: unknown, as of many packages."""
    # A package in an environment inside the user's own repository is not part of that repository.
    if _git(source, "rev-parse", "--show-prefix") == f"src/{source.name}/":
        head = _git(source, "rev-parse", "HEAD")
        changed = _git(source, "status", "--porcelain", "--untracked-files=no", ".")
        return None if head is None or changed is None else f"{head}+" if changed else head
    try:
        installed = json.loads(distribution("vpretrain").read_text("direct_url.json") or "{}")
        return str(installed["vcs_info"]["commit_id"])
    except (PackageNotFoundError, ValueError, LookupError, TypeError):
        return None


def hardware() -> str:
    """Describe processor, memory and GPUs in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.0f} GiB"]
    # With a driver that is too old for this PyTorch, GPUs are counted, and asking one for its name raises an error.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = Counter(torch.cuda.get_device_name(number) for number in range(count))
    return ", ".join([*parts, *(f"{alike} x {name}" for name, alike in gpus.items())])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(directory: Path, *command: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", *command], cwd=directory, capture_output=True, text=True, check=True, timeout=_PATIENCE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return found.stdout.strip()
