"""A shell completes commands, options, choices and settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("argcomplete", reason="part of the development tools")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vpretrain insp", ["inspect "]),
        ("vpretrain estimate recipe.yaml --dev", ["--device "]),
        ("vpretrain estimate recipe.yaml --device a1", ["a100 "]),
        ("vpretrain run recipe.yaml optimizer.w", ["optimizer.weight_decay=", "optimizer.warmup_fraction="]),
        ("vpretrain run recipe.yaml stream.sources.0.mess", ["stream.sources.0.messages="]),
        ("vpretrain run recipe.yaml arm=v-", ["v-mixed-in", "v-exact", "v-learned", "v-paper"]),
        ("vpretrain run recipe.yaml optimizer.schedule=c", ["constant", "cosine"]),
        ("vpretrain run recipe.yaml stream.packing=", ["true", "false"]),
        ("vpretrain compare recipe.yaml --arms one-hot,sel", ["one-hot,self-distillation", "one-hot,selection"]),
        ("vpretrain settings value.subs", ["value.subset "]),
    ],
)
def test_what_follows_is_completed(line, expected, tmp_path):
    file = tmp_path / "completions"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "vpretrain"]
    subprocess.run(command, env=os.environ | asked, check=True, timeout=60, cwd=tmp_path)
    assert sorted(file.read_text().split("\n")) == sorted(expected)
