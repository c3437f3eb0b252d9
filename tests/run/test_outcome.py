"""What Python gets from a run: its figures as attributes, and a table; and the names that the package gives."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
from worlds import tiny_recipe

import vpretrain
from vpretrain import RunResult

FIGURES = {
    "name": "tiny", "arm": "v", "seed": 0, "steps": 4, "processes": 1, "tokens": 384, "seconds": 2.0, "tokens_per_s": 192.0,
    "peak_memory_bytes": 2**30, "total_steps": 4, "meta_updates": 2, "mean_alpha": 0.1, "answer_nll": 1.25,
    "answer_nll_low": 1.2, "answer_nll_high": 1.3, "pass_at_1": None, "retention_nll": 2.5, "problems": [{"nll": 1.25}],
}  # fmt: skip


@pytest.fixture
def result(tmp_path, tokenizer):
    return RunResult(tiny_recipe(tmp_path, tokenizer), FIGURES)


def test_figures_are_attributes_that_can_be_completed(result):
    assert (result.steps, result.answer_nll, result.pass_at_1) == (4, 1.25, None)
    assert (result.warning, result.left_out) == (None, {})
    assert RunResult(result.recipe, FIGURES | {"warning": "w", "left_out": {"a": 1}}).left_out == {"a": 1}
    assert {"answer_nll", "warning", "figures", "recipe"} <= set(dir(result))
    with pytest.raises(AttributeError, match="there is no figure 'answer_nl', but name, arm"):
        _ = result.answer_nl
    assert copy.deepcopy(result).figures == FIGURES


def test_a_run_is_shown_as_a_table(result):
    title, *lines = repr(result).splitlines()
    assert title.strip() == "tiny: held-out answers"
    row = lines[-1].split()
    assert row == ["v", "1.2500", "[1.200,", "1.300]", "2.5000", "4", "384", "2.0", "192", "1.00", "GiB"]
    assert "\x1b" not in repr(result)


def test_a_notebook_gets_the_table_as_html(result):
    html = RunResult(result.recipe, FIGURES | {"arm": "<b>"})._repr_html_()
    assert "<th>answer NLL [95 %]</th><th>retention NLL</th><th>steps</th>" in html
    assert "<td>&lt;b&gt;</td><td>1.2500 [1.200, 1.300]</td><td>2.5000</td><td>4</td>" in html


def test_every_name_of_the_package_is_there_and_compare_is_a_function():
    assert set(vpretrain.__all__) <= set(dir(vpretrain))
    assert all(getattr(vpretrain, name) is not None for name in vpretrain.__all__)
    assert "VPretrainSFTTrainer" in dir(vpretrain)
    assert callable(vpretrain.compare)
    adapters = {"VPretrainTrainer", "VPretraining", "VisionPretraining"}
    assert adapters | {"feedback_rows", "view_batch"} <= set(vpretrain.__all__)


def test_importing_the_package_does_not_wait_for_transformers():
    code = (
        "import sys, vpretrain; from vpretrain import compare; compare.__call__; print('transformers' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
