"""sft and grpo, by TRL, as arms: the same loss as ours, the budget's steps, the same data in the same order, interruptions."""

from __future__ import annotations

import itertools
import json
from itertools import islice, pairwise

import pytest
import torch
from worlds import recipe_data, sums, tiny_recipe, write_jsonl

from vpretrain.config import BudgetConfig
from vpretrain.errors import Paused, UserError
from vpretrain.files import read_lines
from vpretrain.language import direct
from vpretrain.language.assemble import assemble
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data.encode import collate, encode
from vpretrain.language.data.mixture import Mixture
from vpretrain.language.direct import reward
from vpretrain.method.protocols import Task
from vpretrain.recipe import parse_recipe
from vpretrain.run import run_recipe
from vpretrain.run.skipped import SKIPPED, TooManySkipped


def recipe_of(tmp_path, tokenizer, arm, **changes):
    direct = {"problems": 2, "group": 2}
    return tiny_recipe(tmp_path, tokenizer, arm=arm, budget={"steps": 4}, direct=direct, **changes)


def pairs_of(sources, skips, unused=lambda pair: ""):
    return Mixture(sources, skips, seed=0, unused=unused).pairs()


def log(recipe):
    return read_lines(recipe.directory / "metrics.jsonl")


@pytest.mark.parametrize("arm", ["sft", "grpo", "sft-feedback", "grpo-feedback"])
def test_a_run_is_one_like_any_other(tmp_path, tokenizer, arm):
    recipe = recipe_of(tmp_path, tokenizer, arm)
    result = run_recipe(recipe)
    lines = log(recipe)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["tokens"] > earlier["tokens"] for earlier, line in pairwise(lines))
    assert result.steps == 4
    assert result.tokens == lines[-1]["tokens"]
    assert ("mean_reward" in result.figures) == arm.startswith("grpo")
    assert (recipe.directory / "model" / "config.json").exists()


def test_the_first_loss_is_the_one_hot_loss_of_the_same_pairs(tmp_path, tokenizer):
    recipe = recipe_of(tmp_path, tokenizer, "sft")
    parts = assemble(recipe)
    sources = [source for source in recipe.stream.sources if source.prompt]
    pairs = list(islice(pairs_of(sources, recipe.stream), recipe.stream.batch_size))
    batch = collate([encode(pair, tokenizer, recipe.stream.length) for pair in pairs], tokenizer)
    state = parts.learner.forward(batch)
    expected = float(parts.learner.loss(state, Task(batch, state.logits.one_hot())).detach())
    run_recipe(recipe)
    assert log(recipe)[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_rates_follow_the_recipe_and_theta_follows_the_loss(tmp_path, tokenizer, arm, monkeypatch):
    turns = itertools.cycle([1.0, 0.0])
    monkeypatch.setattr(direct, "reward", lambda completions, **other: [next(turns) for _ in completions])
    recipe = recipe_of(tmp_path, tokenizer, arm, optimizer={"schedule": "linear", "warmup_fraction": 0.5})
    before = {n: p.clone() for n, p in assemble(recipe).learner.named_parameters()}
    run_recipe(recipe)
    assert [line["lr"] for line in log(recipe)] == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.55e-3])
    learner = recipe.learner.model_copy(update={"name": str(recipe.directory)})
    after = dict(assemble(recipe.model_copy(update={"learner": learner})).learner.named_parameters())
    assert max(float((after[name] - before[name]).abs().max().detach()) for name in before) > 5e-4


def test_minutes_end_a_run_as_well_and_warm_it_up(tmp_path, tokenizer):
    recipe = recipe_of(tmp_path, tokenizer, "sft").model_copy(update={"budget": BudgetConfig(minutes=0.02)})
    result = run_recipe(recipe)
    assert result.seconds == pytest.approx(1.2, abs=0.5)
    assert result.total_steps == pytest.approx(result.steps, rel=0.2, abs=2)


def test_prompts_that_leave_no_room_are_passed_over_and_resuming_knows_it(tmp_path, tokenizer):
    pairs = sums(30, 1)
    for number, pair in enumerate(pairs):
        pair["question"] += "?" * (60 if number % 3 == 0 else 0)
    runs = {}
    for name in ("whole", "halted"):
        recipe = recipe_of(tmp_path, tokenizer, "sft", name=name)
        write_jsonl(tmp_path / "stream.jsonl", pairs)
        if name == "halted":
            with pytest.raises(Paused):
                run_recipe(recipe, until=0.5)
        run_recipe(recipe, resume=name == "halted")
        runs[name] = [line["loss"] for line in log(recipe)]
    assert runs["whole"] == runs["halted"]


def test_a_gradient_that_is_no_number_ends_the_run_and_updates_nothing(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("nan")))
    with pytest.raises(UserError, match="gradient is nan at step 0"):
        run_recipe(recipe_of(tmp_path, tokenizer, "sft"))


def test_problems_without_a_final_answer_are_no_problems_for_grpo(tmp_path, tokenizer):
    recipe = recipe_of(tmp_path, tokenizer, "grpo")
    rows = [{"question": pair["question"], "reply": "well"} for pair in sums(9, 1)]
    path = write_jsonl(tmp_path / "replies.jsonl", rows)
    source = SourceConfig(path=path, prompt="{question}", response="{reply}")
    stream = recipe.stream.model_copy(update={"sources": [source]})
    with pytest.raises(UserError, match="grpo rewards right final answers"):
        assemble(recipe.model_copy(update={"stream": stream}))


@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, tokenizer, arm):
    whole = recipe_of(tmp_path, tokenizer, arm, name="whole")
    run_recipe(whole)
    halted = recipe_of(tmp_path, tokenizer, arm, name="halted")
    with pytest.raises(Paused):
        run_recipe(halted, until=0.5)
    run_recipe(halted, resume=True)
    for ours, theirs in zip(log(whole), log(halted), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_pairs_come_by_weight_without_those_that_are_held_back(tmp_path, tokenizer):
    data = [{"q": f"q{i}", "a": f"a{i}"} for i in range(5)]
    paths = []
    for name in ("one", "two"):
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", [{**row, "q": name + row["q"]} for row in data]))
    sources = [
        SourceConfig(path=path, prompt="{q}", response="{a}", weight=w) for path, w in zip(paths, (3, 1), strict=True)
    ]
    skips = StreamConfig(sources=sources)
    first = next(pairs_of(sources[:1], skips))

    def unused(pair):
        return "it is the first" if pair.key == first.key else ""

    drawn = list(islice(pairs_of(sources, skips, unused), 400))
    assert first.key not in {pair.key for pair in drawn}
    assert sum(pair.prompt.startswith("one") for pair in drawn) / 400 == pytest.approx(0.75, abs=0.06)
    again = list(islice(pairs_of(sources, skips, unused), 400))
    assert [pair.key for pair in drawn] == [pair.key for pair in again]
    with pytest.raises(UserError, match="cannot be trained on"):
        next(pairs_of(sources[:1], skips, lambda pair: "never"))


def test_sft_on_the_stream_skips_its_problems_of_the_feedback(tmp_path, tokenizer):
    recipe = recipe_of(tmp_path, tokenizer, "sft")
    write_jsonl(tmp_path / "stream.jsonl", sums(12, 1) + sums(12, 2))  # the latter are the feedback
    rows = direct.rows(assemble(recipe).train.mixture, "sft", 0, {})
    drawn = {row["prompt"] for row in islice(rows, 60)}
    assert drawn == {pair["question"] + " " for pair in sums(12, 1)}


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_pairs_without_an_answer_are_not_trained_on(tmp_path, tokenizer, method):
    recipe = recipe_of(tmp_path, tokenizer, method)
    lacking = [{"question": "1 ?", "answer": None}, {"question": "2 ?"}, {"question": None, "answer": "3"}]
    write_jsonl(tmp_path / "stream.jsonl", lacking + sums(12, 1))
    rows = direct.rows(assemble(recipe).train.mixture, method, 0, {})
    drawn = {row["prompt"] for row in islice(rows, 60)}
    assert drawn == {pair["question"] + " " for pair in sums(12, 1)}


def flawed_recipe(root, tokenizer, rows, arm="sft", steps=4, **stream):
    """A recipe whose stream is read in the order of its file: rows, and texts that are no JSON."""
    data = recipe_data(root, tokenizer) | {
        "arm": arm,
        "budget": {"steps": steps},
        "direct": {"problems": 2, "group": 2},
    }
    data["stream"] |= {"sources": [data["stream"]["sources"][0] | {"streaming": True}], **stream}
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "stream.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return parse_recipe(data)


def places(recipe):
    return [entry["place"] for entry in read_lines(recipe.directory / SKIPPED)]


# A run that stops between two rows leaves the open file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_what_is_not_trained_on_is_counted_and_named_up_to_the_last_step_also_after_a_resume(tmp_path, tokenizer, arm):
    good, feedback = sums(40, 1), sums(12, 2)
    lacking, long = {"question": "1 ?", "answer": None}, {"question": "long " * 20, "answer": "4"}
    rows = [
        good[0],
        lacking,
        good[1],
        "no",
        long,
        *good[2:6],
        feedback[0],
        good[6],
        "no",
        good[7],
        lacking,
        "no",
        *good[8:],
    ]
    recipe = flawed_recipe(tmp_path, tokenizer, rows, arm)
    result = run_recipe(recipe)
    # Eight pairs. What was read ahead of the ninth does not count.
    assert result.left_out == {
        f"stream {tmp_path / 'stream.jsonl'}": {
            "response null": 1,
            "prompt fills the length": 1,
            "in feedback or evaluation": 1,
            "unreadable": 2,
        }
    }
    assert places(recipe) == ["line 4 of stream.jsonl", "line 12 of stream.jsonl"]
    halted = recipe.model_copy(update={"name": "halted"})
    with pytest.raises(Paused):
        run_recipe(halted, until=0.5)
    assert places(halted) == ["line 4 of stream.jsonl"]
    assert run_recipe(halted, resume=True).left_out == result.left_out
    assert places(halted) == places(recipe)


def test_too_much_that_cannot_be_read_stops_it_also_after_a_resume(tmp_path, tokenizer):
    good = sums(40, 1)
    recipe = flawed_recipe(
        tmp_path, tokenizer, [good[0], "no", *good[1:24], "no", *good[24:]], steps=16, max_skipped=0.001
    )
    with pytest.raises(Paused):
        run_recipe(recipe, until=0.25)
    assert places(recipe) == ["line 2 of stream.jsonl"]
    with pytest.raises(
        TooManySkipped, match=r"2 of 26 rows or images cannot be read, the last: line 26 of stream\.jsonl"
    ):
        run_recipe(recipe, resume=True)
    assert places(recipe) == ["line 2 of stream.jsonl", "line 26 of stream.jsonl"]


def test_the_reward_is_what_verifies_solutions_elsewhere():
    assert reward(["so #### 12", "it is 13", "1,200.0"], truth=["12", "12", "1200"]) == [1.0, 0.0, 1.0]


def test_the_reward_is_for_what_stands_before_the_stop_string():
    attempts = ["it is 12.\nQuestion: 3 + 3 #### 6", "it is 6.\nQuestion: 6 + 6 #### 12"]
    assert reward(attempts, truth=["12", "12"], stop=["\nQuestion:"]) == [1.0, 0.0]
    assert reward(attempts, truth=["12", "12"]) == [0.0, 1.0]


def test_grpo_is_told_the_recipes_stop_strings(tmp_path, tokenizer, monkeypatch):
    heard = []
    monkeypatch.setattr(
        direct, "reward", lambda completions, *, stop, **_: heard.append(stop) or [0.0] * len(completions)
    )
    evaluation = recipe_data(tmp_path, tokenizer)["evaluation"] | {"stop": ["\n\n"]}
    run_recipe(recipe_of(tmp_path, tokenizer, "grpo", evaluation=evaluation))
    assert heard
    assert all(stop == ["\n\n"] for stop in heard)


def test_raw_text_alone_is_refused_before_the_long_work(tmp_path, tokenizer):
    recipe = recipe_of(tmp_path, tokenizer, "sft")
    stream = recipe.stream.model_copy(update={"sources": recipe.stream.sources[1:]})
    with pytest.raises(UserError, match="the stream has none, only raw text or chats"):
        assemble(recipe.model_copy(update={"stream": stream}))
