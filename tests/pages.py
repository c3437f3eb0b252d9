"""The site of the documentation, built as `make docs` builds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build_site(root: Path) -> Path:
    """Build it from a copy below an empty directory, with warnings as errors; return where it lies."""
    for package in ("sphinx", "furo"):
        pytest.importorskip(package, reason='the site needs pip install "vpretrain[docs]"')
    for name in ("docs", "examples", "benchmarks"):  # with what pages link to
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, str(root / "docs"), str(root / "site")], capture_output=True, text=True, timeout=250
    )
    assert built.returncode == 0, built.stderr
    return root / "site"
