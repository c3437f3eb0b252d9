"""Runs end to end: resume bit for bit, budgets, results, export."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from report.directories import write_run
from sessions import assert_same_end, held, session_of, stopped_after
from transformers import AutoModelForCausalLM
from worlds import tiny_recipe

from vpretrain import UserError, run_recipe
from vpretrain.compare.runs import prepare_group
from vpretrain.config import BudgetConfig
from vpretrain.errors import Interrupted, Paused
from vpretrain.files import read_lines
from vpretrain.recipe import save_recipe
from vpretrain.run.budget import Budget
from vpretrain.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from vpretrain.run.directory import prepare_directory
from vpretrain.run.dry_run import few_steps, planned_steps
from vpretrain.run.export import export
from vpretrain.run.hooks import Hook


@pytest.mark.parametrize("arm", ["v", "v-learned", "v-paper", "one-hot", "random-feedback"])
@pytest.mark.parametrize("lora", [None, {"r": 2, "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}])
def test_an_interrupted_run_ends_bit_equal(tmp_path, tokenizer, arm, lora):
    recipe = tiny_recipe(
        tmp_path,
        tokenizer,
        arm=arm,
        learner={"lora": lora},
        optimizer={"schedule": "cosine", "warmup_fraction": 0.3},
        value={"metric": "adamw", "feedback_every": 2, "strength": 1.0},
        stream={"accumulation": 2},
    )

    def run(stops):
        session, result = stopped_after(recipe, stops)
        # Before the first step AdamW has no metric; the value of v-paper is in the identity's.
        assert result["meta_updates"] == {"one-hot": 0, "v-paper": 3}.get(arm, 2)
        assert (result["mean_alpha"] > 0) == (arm != "one-hot")
        log = [line | {"seconds": None} for line in read_lines(recipe.directory / "metrics.jsonl")]
        return held(session.save()), result["problems"], log

    end, *told = run([])
    again, *told_again = run([0, 2, 3])
    assert_same_end(end, again)
    assert told == told_again


@pytest.mark.usefixtures("judged_early")
def test_a_result_holds_every_figure_and_the_exported_model_has_equal_logits(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    session, result = stopped_after(recipe, [])
    for key in (
        "answer_nll",
        "pass_at_1",
        "retention_nll",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_s",
        "peak_memory_bytes",
    ):
        assert result[key] is not None
    assert result["meta_updates"] == (2 if result["mean_alpha"] else 1)  # the last only with a tilt
    assert result["mean_alpha"] >= 0
    assert result["answer_nll_low"] <= result["answer_nll"] <= result["answer_nll_high"]
    assert json.loads((recipe.directory / "result.json").read_text()) == result
    ids = torch.randint(1, 50, (2, 12))
    reloaded = AutoModelForCausalLM.from_pretrained(recipe.directory / "model", dtype=torch.float32)
    model = session.parts.learner.model.eval()
    assert torch.equal(reloaded.eval()(ids).logits, model(ids).logits)


def test_lora_exports_an_adapter_and_a_merged_model(tmp_path, tokenizer):
    from peft import PeftModel

    recipe = tiny_recipe(tmp_path, tokenizer, learner={"lora": {"r": 2, "target_modules": ["q_proj", "down_proj"]}})
    session, _ = stopped_after(recipe, [])
    ids = torch.randint(1, 50, (2, 12))
    expected = session.parts.learner.model.eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(recipe.directory / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(recipe.learner.name, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, recipe.directory / "model" / "adapter").eval()
    assert torch.equal(adapted(ids).logits, expected)


def test_an_unfinished_run_exports_its_newest_checkpoint(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 1, "keep": 2})
    session, _ = stopped_after(recipe, [])
    assert [path.name for path in checkpoints(recipe.directory / "checkpoints")] == ["step-00000005", "step-00000006"]
    (recipe.directory / "model").rename(tmp_path / "moved")
    export(str(recipe.directory), str(tmp_path / "exported"))
    ids = torch.randint(1, 50, (2, 12))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    assert torch.equal(exported(ids).logits, session.parts.learner.model.eval()(ids).logits)
    with pytest.raises(UserError, match="not empty"):
        export(str(recipe.directory), str(tmp_path / "exported"))


def test_copying_a_model_tells_its_share(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_run(run, "v", 0, 1.0)
    (run / "model/adapter").mkdir(parents=True)
    for name in ("model.safetensors", "adapter/adapter.safetensors"):
        (run / "model" / name).write_bytes(b"x" * 1000)
    shares = []

    @contextlib.contextmanager
    def working(title, share):
        shares.append(share())
        yield
        shares.append(share())

    monkeypatch.setattr("vpretrain.run.export.working", working)
    export(str(run), str(tmp_path / "exported"))
    assert shares == [0, 1]


def test_an_export_does_not_replace_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\. cannot be replaced: name a new directory"):
        export("run", ".")


def test_a_run_whose_targets_stayed_one_hot_warns(tmp_path, tokenizer):
    _, result = stopped_after(tiny_recipe(tmp_path, tokenizer, designer={"burn_in_steps": 6}), [])
    assert "stayed one-hot" in result["warning"]


def test_pad_equal_to_eos_works_end_to_end(tmp_path, pad_is_eos_tokenizer):
    assert pad_is_eos_tokenizer.pad_token_id == pad_is_eos_tokenizer.eos_token_id
    _, result = stopped_after(tiny_recipe(tmp_path, pad_is_eos_tokenizer), [])
    assert result["steps"] == 6


def test_a_taken_directory_and_a_changed_recipe_are_refused(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, checkpoint={"every_steps": 2})
    run_recipe(recipe)
    with pytest.raises(UserError, match="--overwrite"):
        run_recipe(recipe)
    with pytest.raises(UserError, match="changed recipe"):
        run_recipe(tiny_recipe(tmp_path, tokenizer, optimizer={"lr": 2e-3}, checkpoint={"every_steps": 2}), resume=True)
    longer = tiny_recipe(tmp_path, tokenizer, budget={"steps": 8}, checkpoint={"every_steps": 2})
    assert run_recipe(longer, resume=True).steps == 8
    with pytest.raises(UserError, match="no checkpoint"):
        run_recipe(recipe.model_copy(update={"name": "other"}), resume=True)


def test_a_run_replaces_no_file_of_a_comparison(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    for directory in (recipe.directory, recipe.directory / "v.0"):
        directory.mkdir(parents=True)
        (directory / "recipe.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match="holds a comparison"):
        prepare_directory(recipe, resume=False, overwrite=True)
    assert (recipe.directory / "recipe.yaml").exists()


def test_a_recipe_of_the_users_own_is_not_replaced(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    recipe.directory.mkdir(parents=True)
    own, data = recipe.directory / "recipe.yaml", recipe.directory / "data.jsonl"
    data.touch()
    save_recipe(recipe, own)
    saved = own.read_text()
    for text in ("# mine\n" + saved, "["):
        own.write_text(text)
        for prepare in (prepare_directory, prepare_group):
            for overwrite in (False, True):
                with pytest.raises(UserError, match=r"recipe\.yaml was written by hand, and a run there would"):
                    prepare(recipe, resume=False, overwrite=overwrite)
        assert own.read_text() == text
        assert data.exists()
    own.write_text(saved)
    prepare_group(recipe, resume=False, overwrite=True)
    assert own.read_text() == saved


def test_an_overwritten_run_keeps_no_probe_or_profile_of_the_one_before(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    recipe.directory.mkdir(parents=True)
    files = [recipe.directory / name for name in ("probe.json", "probe.png", "profile.json", "profile.png")]
    for file in files:
        file.touch()
    prepare_directory(recipe, resume=False, overwrite=False)
    assert all(file.exists() for file in files)
    prepare_directory(recipe, resume=False, overwrite=True)
    assert not any(file.exists() for file in files)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"a": {"x": torch.ones(2)}}, {"n": 1}, keep=1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vpretrain.run.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"a": {"x": torch.zeros(2)}}, {"n": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    groups, state = load_checkpoint(tmp_path / "step-00000001")
    assert state == {"n": 1}
    assert torch.equal(groups["a"]["x"], torch.ones(2))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_budget_in_minutes_ends_nearest_to_its_limit_and_charges_training_only():
    clock = Clock()
    budget = Budget(BudgetConfig(minutes=1), clock)
    for _ in budget:
        clock.now += 7
        with budget.paused():
            clock.now += 1000
    assert budget.step == 9  # 63 s is nearer to 60 s than 56 s
    assert budget.seconds == 63


def test_the_end_of_a_budget_in_minutes_is_evaluated_once(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("vpretrain.run.session.planned_steps", lambda *run: 4)
    budget = {"minutes": 1, "steps": None}
    session = session_of(tiny_recipe(tmp_path, tokenizer, budget=budget, evaluation={"points": 4}))
    clock, draw = Clock(), session.parts.stream.next
    session.budget = Budget(session.recipe.budget, clock)

    def fourteen_seconds():
        clock.now += 14
        return draw()

    session.parts.stream.next = fourteen_seconds
    assert session.run()["steps"] == 4  # 56 s is nearer to 60 s than 70 s, and beyond the last point
    assert [line["step"] for line in read_lines(session.directory / "scores.jsonl")] == [1, 2]


def test_a_run_too_short_for_its_strength_says_so_before_it_trains(tmp_path, tokenizer, monkeypatch, capsys):
    class Stop(Hook):
        def before_training(self, session):
            said.append(capsys.readouterr().err)
            session.budget.stop()

    monkeypatch.setattr("vpretrain.run.session.planned_steps", lambda *run: 5)
    said: list[str] = []
    minutes = tiny_recipe(tmp_path, tokenizer, arm="v", budget={"minutes": 1, "steps": None})
    with pytest.raises(Paused):
        run_recipe(minutes, hooks=[Stop()])
    assert (
        "warning: v makes about 5 steps, too few for two judgements of its strength, and may train as one-hot throughout: "
        "raise budget.minutes to about 7, or make steps shorter by stream.batch_size or stream.length\n" in said[0]
    )


def test_only_an_automatic_strength_needs_many_steps(tmp_path, tokenizer):
    for arm, strength, steps, warned in (
        ("v", "auto", 32, True), ("v-learned", "auto", 32, True), ("v", "auto", 33, False), ("v", "auto", 0, False),
        ("v", 1.0, 32, False), ("one-hot", "auto", 32, False),
    ):  # fmt: skip
        recipe = tiny_recipe(tmp_path, tokenizer, arm=arm, value={"strength": strength}, budget={"steps": steps})
        warning = few_steps(recipe, session_of(recipe).parts, steps)
        assert (warning is not None and "raise budget.steps to 33 or more" in warning) == warned


def test_a_budget_is_honoured_across_a_resume():
    clock = Clock()
    first = Budget(BudgetConfig(minutes=1), clock)
    for step in first:
        clock.now += 5
        with first.paused():
            state = first.state_dict()
        if step == 3:
            first.stop()
    clock.now += 500
    second = Budget(BudgetConfig(minutes=1), clock)
    second.load_state_dict(state)
    steps = []
    for step in second:
        clock.now += 5
        steps.append(step)
    assert steps == list(range(4, 12))
    assert second.seconds == 60


def test_the_dry_run_that_plans_the_steps_changes_nothing(tmp_path, tokenizer):
    timed = tiny_recipe(tmp_path, tokenizer, arm="v-learned", budget={"steps": 6, "minutes": 60})
    recipe = timed.model_copy(update={"budget": BudgetConfig(minutes=60)})
    session = session_of(recipe)
    parts = session.parts
    before = [p.detach().clone() for p in (*parts.learner.module.parameters(), *parts.designer.parameters())]
    cursors, random_state = (parts.stream.state_dict(), parts.feedback.state_dict()), torch.get_rng_state()
    assert planned_steps(recipe, parts, session.optimizer) >= 1
    after = [*parts.learner.module.parameters(), *parts.designer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (parts.stream.state_dict(), parts.feedback.state_dict()) == cursors
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in after)


class Count(Hook):
    """Counts steps, and stops the run after some."""

    def __init__(self, most=None):
        self.most, self.steps, self.called = most, 0, []

    def before_training(self, session):
        self.called.append("before_training")

    def after_step(self, session, record):
        assert session.line["step"] == record.step
        self.steps += 1
        if self.steps == self.most:
            os.kill(os.getpid(), signal.SIGTERM)

    def after_run(self, session, result):
        self.called.append(result["steps"])

    def close(self):
        self.called.append("close")

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_a_hook_of_the_users_accompanies_a_run_and_its_state_is_saved_with_it(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 5})
    first, second = Count(most=2), Count()
    with pytest.raises(Interrupted):
        run_recipe(recipe, hooks=[first])
    assert first.called == ["before_training", "close"]
    run_recipe(recipe, resume=True, hooks=[second])
    assert second.called == ["before_training", 5, "close"]
    assert second.steps == 5


def test_a_hook_may_stop_a_run_which_then_goes_on(tmp_path, tokenizer):
    class Stop(Hook):
        def after_step(self, session, record):
            if record.step == 1:
                session.budget.stop()

    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 5})
    with pytest.raises(Paused, match="paused at 40% of the budget"):
        run_recipe(recipe, hooks=[Stop()])
    assert run_recipe(recipe, resume=True).steps == 5


def test_a_run_says_how_far_it_is_also_beyond_a_pause_or_before_it(tmp_path, tokenizer):
    class Stop(Hook):
        def after_step(self, session, record):
            session.budget.stop()

    recipe = tiny_recipe(tmp_path, tokenizer, budget={"steps": 5})
    with pytest.raises(Paused, match="paused at 20% of the budget"):
        run_recipe(recipe, hooks=[Stop()], until=0.8)
    with pytest.raises(Paused, match="paused at 70% of the budget"):
        run_recipe(recipe, resume=True, until=0.7)
    with pytest.raises(Paused, match="paused at 80% of the budget"):  # after four of five steps
        run_recipe(recipe, resume=True, until=0.3)


def test_a_schedule_ends_with_the_minutes_however_the_dry_run_went(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("vpretrain.run.dry_run.seconds_of_a_step", lambda *run: 1e-3)
    recipe = tiny_recipe(tmp_path, tokenizer, optimizer={"lr": 1e-3, "schedule": "linear"})
    result = run_recipe(recipe.model_copy(update={"budget": BudgetConfig(minutes=0.03)}))
    assert result.total_steps == pytest.approx(result.steps, rel=0.1, abs=1)
    rates = [line["lr"] for line in read_lines(recipe.directory / "metrics.jsonl")]
    assert rates[-1] < 0.4 * max(rates)


def test_the_python_of_the_readme_runs_in_under_ten_lines(tmp_path, tokenizer, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 10
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    for theirs, ours in (("recipes/quickstart.yaml", str(tmp_path / "recipe.yaml")), ("minutes=10", "steps=2")):
        assert theirs in code
        code = code.replace(theirs, ours)
    exec(compile(code, "README.md", "exec"), {})
    *shown, last = capsys.readouterr().out.splitlines()
    assert any("answer NLL" in line for line in shown)
    nll, retention, alpha = map(float, last.split())
    assert min(nll, retention) > 0
    assert 0 <= alpha < 1
