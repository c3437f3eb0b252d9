"""The examples run, add as little as they say, and are what the documentation shows."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("own_loop.py", "pretraining_loop.py", "trainer.py")
EXAMPLES = {name: (ROOT / "examples" / name).read_text(encoding="utf-8") for name in NAMES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_says_what_v_pretraining_does(name, capsys):
    check_run(name, capsys)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_the_lightning_module_too(capsys):
    pytest.importorskip("lightning", reason="needs pip install lightning, which nothing else here uses")
    check_run("lightning_module.py", capsys)


def check_run(name, capsys):
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    losses = [float(re.search(r"loss\W+([\d.]+)", line)[1]) for line in lines]
    assert losses[-1] < losses[0]
    assert sum("alpha" in line for line in lines) >= 6
    assert any("strength" in line for line in lines)


def test_a_loop_of_ones_own_needs_fewer_than_twenty_lines_more():
    example = EXAMPLES["own_loop.py"]
    added = [line for line in example.splitlines() if re.search(r"# \+( |$)", line)]
    assert 5 < len(added) < 20
    rest = "\n".join(line for line in example.partition('"""\n\nimport')[2].splitlines() if line not in added)
    assert not re.search(r"vpretrain|\bv\.|feedback", rest)


def test_the_documentation_shows_the_examples_own_lines():
    document = (ROOT / "docs/adapters.md").read_text(encoding="utf-8")
    examples = [[line.strip() for line in text.splitlines()] for text in EXAMPLES.values()]
    blocks = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        wanted = [line.strip() for line in textwrap.dedent(block).splitlines()]
        assert any(
            wanted == example[start : start + len(wanted)] for example in examples for start in range(len(example))
        ), block
