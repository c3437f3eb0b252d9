"""The live view: what it says of directories written by hand and of a real run, and that it reads each line once."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from worlds import tiny_recipe

from vpretrain.cli.parser import main
from vpretrain.config import BudgetConfig
from vpretrain.recipe import save_recipe
from vpretrain.report import watch as module
from vpretrain.report.sparkline import Curve
from vpretrain.report.tail import Tail
from vpretrain.report.watch import RunView, watch
from vpretrain.run import run_recipe
from vpretrain.run.lock import holder, locked


def line(step, **more):
    """As a session logs it: 100 tokens and 2 seconds a step."""
    return {"step": step, "seconds": 2.0 * (step + 1), "tokens": 100 * (step + 1), "loss": 4.0 - step / 10} | more


def written(directory, lines, recipe=None, end="\n"):
    directory.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        save_recipe(recipe, directory / "recipe.yaml")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines)[:-1] + end)
    return directory


def shown(directory, width=160):
    console = Console(file=io.StringIO(), width=width)
    watch(directory, console, once=True)
    return console.file.getvalue()


@pytest.fixture
def recipe(tmp_path, tokenizer):
    return tiny_recipe(tmp_path, tokenizer, budget={"steps": 20})


@pytest.fixture
def at_work(tmp_path, recipe):
    """The view of a run of this process after 5 of 20 steps and an evaluation."""
    run = written(tmp_path / "run", [line(n, alpha=0.1, value=0.01 * n) for n in range(5)], recipe)
    (run / "scores.jsonl").write_text(json.dumps({"step": 3, "retention_nll": 2.5, "pass_at_1": None}) + "\n")
    with locked(run):
        return shown(run)


def test_a_run_at_work_shows_its_arm_its_process_and_what_is_left(at_work):
    assert f"arm v, running (process {os.getpid()})" in at_work
    assert "25%" in at_work
    assert "0:30 left" in at_work  # 15 steps of 2 seconds
    assert "step 5" in at_work


def test_a_run_at_work_shows_its_newest_figures(at_work):
    assert "loss 3.6" in at_work
    assert "alpha 0.1" in at_work
    assert "value 0.04" in at_work
    assert "tokens/s 50" in at_work


def test_a_run_at_work_shows_its_curve_and_its_last_evaluation(at_work):
    assert re.search("█▆[▄▅]▃▁", at_work)
    assert "evaluation after step 3: retention NLL 2.5000" in at_work


def test_a_run_at_work_shows_the_memory_of_its_process(at_work):
    resident = float(at_work.split("memory ")[1].split()[0])
    statm = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident == pytest.approx(statm / 2**30, rel=0.1)


def test_states_of_a_process_that_is_gone(tmp_path, recipe):
    run = written(tmp_path / "run", [line(n) for n in range(5)], recipe)
    assert "interrupted" in shown(run)
    assert "go on with the same command: nothing was saved yet" in shown(run)
    (run / "checkpoints/step-00000003").mkdir(parents=True)
    assert "interrupted" in shown(run)
    (run / "checkpoints/step-00000005").mkdir()
    assert "paused" in shown(run)
    assert "--resume" in shown(run)
    (run / "result.json").write_text(json.dumps({"tokens_per_s": 77.0, "peak_memory_bytes": 3 * 2**30}, indent=1))
    text = shown(run)
    assert "finished" in text
    assert "tokens/s 77" in text
    assert "3.00 GiB at most" in text
    assert "100%" in text


def test_a_run_evaluates_when_its_last_step_lies_nearest_to_the_end_of_its_minutes(tmp_path, recipe):
    minutes = recipe.model_copy(update={"budget": BudgetConfig(minutes=0.35)})  # 21 seconds; a step takes 2
    for steps, state, share in ((9, "running", "86%"), (10, "evaluating", "100%")):
        run = written(tmp_path / f"run{steps}", [line(n) for n in range(steps)], minutes)
        with locked(run):
            text = shown(run)
        assert f"arm v, {state} (" in text
        assert share in text


@pytest.mark.parametrize("log", [None, "", '{"step": 0, "seco', "null\n[1]\nnonsense\n" + '{"step": "x"}\n'])
def test_a_log_without_a_whole_line(tmp_path, recipe, log):
    run = tmp_path / "run"
    run.mkdir()
    save_recipe(recipe, run / "recipe.yaml")
    if log is not None:
        (run / "metrics.jsonl").write_text(log)
    assert "interrupted" in shown(run)
    with locked(run):
        assert "starting" in shown(run)


def test_the_untouched_learner_evaluates_as_soon_as_it_is_loaded(tmp_path, recipe):
    run = written(tmp_path / "step-0", [], recipe.model_copy(update={"budget": BudgetConfig(steps=0)}))
    with locked(run):
        assert "arm v, evaluating (" in shown(run)


def test_a_run_that_is_still_loading(tmp_path):
    with locked(tmp_path / "run"):
        assert "loading" in shown(tmp_path / "run")


def test_a_line_without_its_end_waits_for_it(tmp_path):
    log = tmp_path / "log"
    log.write_text('{"step": 0}\n{"st')
    tail = Tail(log)
    assert tail.read() == (True, [{"step": 0}])
    assert tail.read() == (False, [])
    with log.open("a") as file:
        file.write('ep": 1}\n')
    assert tail.read() == (False, [{"step": 1}])


def test_a_log_that_is_cut_when_its_run_goes_on(tmp_path, recipe):
    run = written(tmp_path / "run", [line(n) for n in range(9)], recipe)
    view = RunView(run)
    view.update()
    assert view.steps == 9
    aside = run / "aside"
    aside.write_text("".join(json.dumps(line(n, loss=9.0)) + "\n" for n in range(4)))
    aside.replace(run / "metrics.jsonl")
    view.update()
    assert (view.steps, view.curves["loss"].means) == (4, [9.0] * 4)
    aside.write_text("".join(json.dumps(line(n, loss=8.0)) + "\n" for n in range(12)))  # longer at once
    aside.replace(run / "metrics.jsonl")
    view.update()
    assert (view.steps, view.curves["loss"].means) == (12, [8.0] * 12)


def test_a_log_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    log, aside = tmp_path / "log", tmp_path / "aside"
    log.write_text('{"step": 0}\n')
    aside.write_text('{"step": 5}\n{"step": 6}\n')
    whole_open = Path.open

    def replaced(path, mode):
        file = whole_open(path, mode)
        if aside.exists():
            aside.replace(log)
        return file

    monkeypatch.setattr(Path, "open", replaced)
    tail = Tail(log)
    assert tail.read() == (True, [{"step": 0}])
    assert tail.read() == (True, [{"step": 5}, {"step": 6}])


def test_twenty_thousand_lines_are_read_once_and_quickly(tmp_path, recipe, monkeypatch):
    run = written(tmp_path / "run", [line(n, value=0.1, alpha=0.2) for n in range(20_000)], recipe)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    view = RunView(run)
    start = time.perf_counter()
    view.update()
    assert time.perf_counter() - start < 2
    assert len(parsed) == 20_000
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(20_000)) + "\n")
    view.update()
    view.update()
    assert len(parsed) == 20_001
    assert view.steps == 20_001
    assert len(view.curves["loss"].means) <= 64


@pytest.mark.parametrize("count", [1, 63, 64, 65, 66, 129, 1000])
def test_a_curve_keeps_the_means_of_equal_parts(count):
    curve = Curve()
    for n in range(count):
        curve.add(float(n))
    each = 1
    while count // each > 64:
        each *= 2
    assert curve.means == pytest.approx([each * k + (each - 1) / 2 for k in range(count // each)])
    assert len(curve.sparkline()) == count // each
    curve.add(float("nan"))
    assert len(curve.means) == count // each


def test_sparklines_span_low_to_high():
    curve = Curve()
    for value in (0, 7, 3.4, 7):
        curve.add(value)
    assert curve.sparkline() == "▁█▄█"


@pytest.mark.parametrize(
    ("limits", "steps", "seconds", "share", "left"),
    [({"minutes": 1}, 3, 15.0, 0.25, 45.0), ({"steps": 10}, 4, 8.0, 0.4, 12.0),
     ({"minutes": 1, "steps": 10}, 9, 15.0, 0.9, 15 / 9), ({"steps": 0}, 0, 0.0, 1.0, 0.0)],
)  # fmt: skip
def test_what_is_left_of_a_budget(limits, steps, seconds, share, left):
    budget = BudgetConfig(**limits)
    assert budget.fraction(steps, seconds) == pytest.approx(share)
    assert budget.seconds_left(steps, seconds) == pytest.approx(left)


def test_a_comparison_and_the_member_at_work(tmp_path, recipe):
    group = tmp_path / "group"
    written(group / "v", [line(n) for n in range(5)], recipe)
    written(group / "one-hot", [line(n) for n in range(20)], recipe)
    save_recipe(recipe, group / "recipe.yaml")
    (group / "one-hot/result.json").write_text(json.dumps({"retention_nll": 2.25, "steps": 20}))
    with locked(group), locked(group / "v"):
        text = shown(group)
    assert f"{group}: running" in text
    rows = {row.split()[1]: row for row in text.splitlines() if row.startswith("│") and len(row.split()) > 3}
    assert "finished" in rows["one-hot"]
    assert "retention NLL 2.2500" in rows["one-hot"]
    assert "running" in rows["v"]
    assert "25%" in rows["v"]
    assert "arm v, running" in text
    assert f": {group}/v" in text
    assert f"{group}: interrupted" in shown(group)
    (group / "results.json").write_text("{}")
    assert f"{group}: finished" in shown(group)
    later = (group / "results.json").stat().st_mtime_ns + 10**9
    os.utime(group / "v/recipe.yaml", ns=(later, later))  # as v, which was added with --resume, has written it
    assert f"{group}: interrupted" in shown(group)
    (group / "v/result.json").write_text(json.dumps({"retention_nll": 2.25, "steps": 20}))
    assert f"{group}: finished" in shown(group)


def test_a_real_run_ends_the_view_and_so_does_ctrl_c(tmp_path, tokenizer, capsys, monkeypatch):
    recipe = tiny_recipe(tmp_path, tokenizer, evaluation={"points": 2}, budget={"steps": 4})
    result = run_recipe(recipe)
    assert main(["watch", str(recipe.directory)]) == 0  # not a terminal: one frame
    text = capsys.readouterr().out
    assert "finished" in text
    assert "step 4" in text
    assert f"answer NLL [95 %] {result.answer_nll:.4f}" in text
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    watch(recipe.directory, console)  # ends by itself
    assert "finished" in console.file.getvalue()
    (recipe.directory / "result.json").unlink()
    monkeypatch.setattr(module.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    watch(recipe.directory, console)
    assert "paused" in console.file.getvalue()
    assert "Traceback" not in console.file.getvalue()


def test_no_directory_of_a_run(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "no directory of a run" in printed


def test_a_folder_of_one_run_opens_it(tmp_path, recipe):
    written(tmp_path / "runs/alone", [line(n) for n in range(5)], recipe)
    assert f"{tmp_path}/runs/alone" in "".join(shown(tmp_path / "runs").split("\n"))


def test_a_folder_of_several_runs_names_them(tmp_path, capsys):
    for name in ("alone", "study"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    assert main(["watch", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert f"holds several runs: name one of them: {tmp_path / 'alone'}, {tmp_path / 'study'}" in printed


def test_asking_who_holds_a_directory_refuses_nobody(tmp_path):
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass
