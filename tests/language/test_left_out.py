"""Examples that nothing can be learned from: every command that reads them gives their number, by source and reason."""

from __future__ import annotations

import pytest
from worlds import recipe_data, sums, write_jsonl

from vpretrain import run_recipe
from vpretrain.errors import Paused
from vpretrain.language.inspection.check import check
from vpretrain.language.inspection.inspect import inspect
from vpretrain.recipe import parse_recipe
from vpretrain.run.left_out import by_source, lines

FLAWED = {
    "stream": [{"question": "1 ?", "answer": None}, {"question": "2 ?"}, {"question": "long " * 20, "answer": "4"}],
    "feedback": [{"question": "3 ?", "answer": ""}, {"question": "wide " * 20, "answer": "4"}],
    "evaluation": [{"question": None, "answer": "5"}, {"question": "6 ?", "answer": None}],
}


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A recipe whose sources begin with flawed rows; its stream is read in the order of the file, and not to its end."""
    data = recipe_data(tmp_path, tokenizer) | {"arm": "one-hot"}
    data["stream"]["sources"] = [data["stream"]["sources"][0] | {"streaming": True}]
    for seed, (role, rows) in enumerate(FLAWED.items(), start=1):
        write_jsonl(tmp_path / f"{role}.jsonl", rows + sums(40, seed))
    return parse_recipe(data)


@pytest.fixture
def expected(tmp_path):
    return {
        f"feedback {tmp_path / 'feedback.jsonl'}": {"response empty": 1, "prompt fills the length": 1},
        f"evaluation {tmp_path / 'evaluation.jsonl'}": {"prompt null": 1, "response null": 1},
        f"stream {tmp_path / 'stream.jsonl'}": {
            "response null": 1,
            "response missing": 1,
            "prompt fills the length": 1,
        },
    }


def test_counts_are_added_up_by_source_and_reason():
    counts = [("a", {"null": 1, "empty": 0}), ("b", {"null": 0}), ("a", {"null": 1000, "long": 2})]
    assert by_source(counts) == {"a": {"null": 1001, "long": 2}}
    assert lines(by_source(counts)) == ["left out of a: 1,001 (null), 2 (long)"]


def test_a_run_gives_them_at_its_end_also_after_a_resume(recipe, expected, capsys):
    result = run_recipe(recipe)
    assert result.left_out == expected
    told = capsys.readouterr().err
    assert all(line in told for line in lines(expected))
    halted = recipe.model_copy(update={"name": "halted"})
    with pytest.raises(Paused):
        run_recipe(halted, until=0.5)
    assert run_recipe(halted, resume=True).left_out == expected


def test_a_run_that_leaves_nothing_out_says_nothing(tmp_path, tokenizer, capsys):
    result = run_recipe(parse_recipe(recipe_data(tmp_path, tokenizer) | {"arm": "one-hot"}))
    assert result.left_out == {}
    assert "left out" not in capsys.readouterr().err


def test_check_gives_those_of_the_first_examples(recipe, expected):
    told = "\n".join(check(recipe))
    assert all(line in told for line in lines(expected))


def test_inspect_gives_those_so_far(recipe, expected, capsys):
    inspect(recipe, examples=1, positions=1)
    told = capsys.readouterr().out
    assert all(line in told for line in lines(expected))
