"""The examples run, add as little as they say, and are what the documentation shows."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from vpretrain import VPretraining, feedback_rows
from vpretrain.language.config import DesignerConfig, ValueConfig

ROOT = Path(__file__).parents[2]
NAMES = ("own_loop.py", "pretraining_loop.py", "trainer.py")
EXAMPLES = {name: (ROOT / "examples" / name).read_text(encoding="utf-8") for name in NAMES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_says_what_v_pretraining_does(name, capsys):
    check_run(name, capsys)


@pytest.mark.slow  # `make test-slow` installs Lightning, which nothing else needs
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_the_lightning_module_has_the_numbers_of_a_plain_loop_bit_for_bit(capsys):
    pytest.importorskip("lightning")
    found = check_run("lightning_module.py", capsys)
    torch.manual_seed(0)
    model = LlamaForCausalLM(found["model"].config).train()
    settings = {"designer": DesignerConfig(top_k=16), "value": ValueConfig(every_steps=2)}
    v = VPretraining(model, feedback_rows(found["pairs"], found["tokenizer"]), **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    found["order"].manual_seed(0)
    for step, batch in zip(range(found["STEPS"]), found["stream"], strict=False):
        halves = [
            dict(zip(batch, half, strict=True)) for half in zip(*(t.chunk(2) for t in batch.values()), strict=True)
        ]
        for loss in v.losses(step, halves, optimizer=optimizer, progress=step / found["STEPS"]):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert v.record["alpha"] > 0
    for ours, theirs in zip(model.parameters(), found["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def check_run(name, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [name])
        found = runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    losses = [float(re.search(r"loss\W+([\d.]+)", line)[1]) for line in lines]
    assert losses[-1] < losses[0]
    assert sum("alpha" in line for line in lines) >= 6
    assert any("strength" in line for line in lines)
    return found


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
