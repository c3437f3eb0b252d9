"""Problems with several right answers: the scorer of their data set decides, wherever attempts are judged."""

from __future__ import annotations

import inspect
import re
import sys
from types import SimpleNamespace

import pytest
import reasoning_gym
from tokenizers import decoders
from worlds import tiny_recipe

from vpretrain.language import direct
from vpretrain.language.assemble import assemble
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.generated import SCORED
from vpretrain.language.data.source import open_source
from vpretrain.language.evaluation.solve import is_correct, needs_mathematics, reference, solves

# Paths through an open grid: the same moves in another order are as short.
GRID = {
    "reasoning_gym": "shortest_path",
    "size": 12,
    "options": {"seed": 1, "p_blocked": 0.0},
    "prompt": "{source_index} ? ",
    "response": "{answer}",
    "domain": "sums",
}


def other_way(example):
    """The moves of a problem's answer, the last one first."""
    return " ".join(reversed(example.fields["answer"].split()))


@pytest.fixture
def example():
    """A problem with two different right answers."""
    source = open_source(SourceConfig(**GRID))
    return next(one for one in source if other_way(one) != one.fields["answer"])


def test_every_right_answer_counts_and_no_other(example):
    other = other_way(example)
    assert not is_correct(other, reference(example))
    for text in (other, f" {other}\n", f"first some thoughts\n{other}", f"#### {other}", f"\\boxed{{{other}}} it is"):
        assert solves(text, example), text
    assert solves(reference(example), example)
    # For a path that is longer the scorer gives one half, which does not count.
    for text in ("", "infeasible", f"{other} left right", other.rsplit(" ", 1)[0]):
        assert not solves(text, example), text


def test_only_scorers_that_run_no_code_of_an_answer_are_used():
    assert open_source(SourceConfig(reasoning_gym="countdown", size=2))[0].scorer is None  # it has sympy evaluate it
    for name in SCORED:
        dataset = reasoning_gym.create_dataset(name, size=1, seed=0)
        text = inspect.getsource(sys.modules[type(dataset).__module__])
        assert not re.search(r"\b(eval|exec|parse_expr|sympify)\(", text), name
        assert dataset.score_answer(dataset[0]["answer"], dataset[0]) == 1.0, name


def test_a_scorer_needs_no_package_for_answers_that_are_formulas():
    puzzle = open_source(SourceConfig(reasoning_gym="jugs", size=2))[0]
    assert puzzle.scorer is not None
    assert not needs_mathematics(puzzle)


def test_pass_at_1_counts_every_right_answer(tmp_path, tokenizer, monkeypatch):
    def solve(learner, tokenizer, examples, *_, **kwargs):
        return [[other_way(example)] for example in examples]

    monkeypatch.setattr("vpretrain.language.evaluation.evaluate.solve", solve)
    recipe = tiny_recipe(tmp_path, tokenizer, evaluation={"sources": [GRID]})
    assert assemble(recipe).evaluate()["pass_at_1"] == 1.0


def test_a_verifier_rewards_every_right_answer(tmp_path, tokenizer, example):
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    feedback = {"reward": "answer", "attempts": 4, "batch_size": 2, "sources": [GRID]}
    verified = assemble(tiny_recipe(tmp_path, tokenizer, feedback=feedback)).feedback
    for text, expected in ((other_way(example), 1.0), ("infeasible", 0.0)):
        assert verified._reward(example, tokenizer(text)["input_ids"]) == expected


def test_grpo_rewards_every_right_answer(example):
    scorers = {}
    stub = SimpleNamespace(pairs=lambda start: iter([example]))
    (row,) = direct.rows(stub, "grpo", 0, scorers)
    told = {"truth": [row["truth"]] * 2, "prompts": [row["prompt"]] * 2, "scorers": scorers}
    assert direct.reward([other_way(example), "infeasible"], **told) == [1.0, 0.0]
    assert direct.reward([other_way(example)], truth=[row["truth"]], prompts=["another"], scorers=scorers) == [0.0]
