"""The versions that a run's results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    packages = {name: version(name) for name in ("vpretrain", "torch", "transformers")}
    return packages | {"python": platform.python_version()}
