"""What long work prints: in a terminal, in a log, with --quiet, --verbose and NO_COLOR."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from worlds import tiny_recipe

from vpretrain import console
from vpretrain.cli import runs as commands
from vpretrain.cli.parser import main
from vpretrain.compare import runs
from vpretrain.compare.runs import _Pace
from vpretrain.recipe import save_recipe

WORK = """
import time
from vpretrain import console
console.FIRST_SECONDS = 0.05
with console.verbosity(less={quiet}, more={verbose}):
    console.note("a remark")
    console.warn("a warning")
    with console.working("loading"):
        time.sleep(0.2)
    with console.steady("work", 4, "parts") as done:
        time.sleep(0.1)
        done(1)
"""


def printed(quiet=False, verbose=False, **environment):
    """What WORK prints into a pipe."""
    code = WORK.format(quiet=quiet, verbose=verbose)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert not done.stdout
    return done.stderr.splitlines()


def printed_in_terminal(code, **environment):
    """What a process prints into a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"TERM": "xterm-256color"} | environment,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 4096):
            text += piece
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    return text.decode()


def test_a_log_has_a_line_for_work_that_takes_long_and_the_time_left_where_it_is_known():
    """FORCE_COLOR makes no terminal: Jupyter wishes for colours from the processes it starts, but their stderr is a pipe."""
    lines = printed(FORCE_COLOR="1")
    assert lines == ["a remark", "a warning", "loading: 0:00 so far", "work: 25%, 0:00 left  1/4 parts"]


SHARED = """
import time
from vpretrain import console
console.FIRST_SECONDS = 0.05
with console.working("copying", lambda: {share}):
    time.sleep(0.2)
"""


@pytest.mark.parametrize(("share", "line"), [(0.0, "0:00 so far"), (0.25, "25%, 0:00 left")])
def test_work_that_can_tell_its_share_has_the_time_left(share, line):
    code = SHARED.format(share=share)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"copying: {line}"]
    assert line in printed_in_terminal(code)


def test_work_within_work_is_part_of_it():
    code = """
import time
from vpretrain import console
console.FIRST_SECONDS = 0.05
with console.working("loading"):
    with console.working("converting"):
        time.sleep(0.2)
with console.working("saving"):
    time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["loading: 0:00 so far", "saving: 0:00 so far"]
    shown = printed_in_terminal(code)
    assert "loading" in shown
    assert "converting" not in shown


def test_a_name_in_brackets_is_no_markup():
    code = """
from vpretrain import console
console.FIRST_SECONDS = 0.0
with console.progress("[/a]") as update:
    update(0.5, None, "rows[b].jsonl")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["[/a]: 50%, -:-- left  rows[b].jsonl"]
    shown = printed_in_terminal(code)
    assert "[/a]" in shown
    assert "rows[b].jsonl" in shown


def test_parts_without_a_unit_are_not_counted_in_the_line():
    code = "from vpretrain import console\nconsole.FIRST_SECONDS = 0\nwith console.steady('y', 2) as done: done(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "y: 50%, 0:00 left\n"


def test_short_work_prints_no_line():
    code = "from vpretrain import console\nwith console.working('x'), console.steady('y', 2) as done: done(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_quiet_leaves_warnings_alone():
    assert printed(quiet=True) == ["a warning"]


def test_verbose_adds_how_long_work_took():
    assert "loading: 0:00" in printed(verbose=True)
    assert "loading: 0:00" not in printed()


def test_no_color_has_no_colours_in_a_terminal():
    code = "from vpretrain.console import warn; warn('a warning')"
    coloured, plain = printed_in_terminal(code), printed_in_terminal(code, NO_COLOR="1")
    assert "\x1b[33m" in coloured
    assert "\x1b[" not in plain
    assert "a warning" in plain


def test_a_terminal_shows_the_time_so_far_and_the_time_left():
    text = printed_in_terminal(WORK.format(quiet=False, verbose=False))
    assert "loading" in text
    assert "0:00 so far" in text
    assert "25%" in text
    assert "left" in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-:--"), (59.9, "0:59"), (3599, "59:59"), (36_061, "10:01:01")])
def test_times(seconds, text):
    assert console.minutes(seconds) == text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runs", "."], []),
        (["--quiet", "runs", "."], ["--quiet"]),
        (["runs", "--verbose", "."], ["--verbose"]),
        (["runs", ".", "--quiet"], ["--quiet"]),
    ],
)
def test_switches_stand_before_or_after_the_command_and_end_with_it(monkeypatch, words, expected):
    seen = []

    def runs(options):
        """List."""
        seen.extend(console.switches())

    monkeypatch.setattr(commands, "runs", replace(commands.runs, handler=runs))
    assert main(words) == 0
    assert seen == expected
    assert console.switches() == []


@pytest.mark.parametrize(
    ("words", "refusal"),
    [(["runs", "--quiet", "--verbose"], "not allowed with"), (["--quiet", "runs", "--verbose"], "exclude each other")],
)
def test_quiet_and_verbose_exclude_each_other(capsys, words, refusal):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert refusal in capsys.readouterr().err


def test_runs_of_a_comparison_say_as_much_as_it_does(monkeypatch):
    started = []
    monkeypatch.setattr(runs.subprocess, "Popen", lambda command, **kwargs: started.append(command))
    with console.verbosity(less=True):
        runs.start_process(["run", "recipe.yaml"])
    runs.start_process(["run", "recipe.yaml"])
    assert [command[2:] for command in started] == [
        ["vpretrain", "--quiet", "run", "recipe.yaml"],
        ["vpretrain", "run", "recipe.yaml"],
    ]


@pytest.mark.parametrize(
    ("budget", "planned"),
    [({"minutes": 1, "steps": None}, ", about 2:40 left in all"), ({"steps": 5}, "")],  # 60 s and 4 evaluations of 5 s
)
def test_the_time_left_of_a_comparison_is_that_of_the_turns_so_far(tmp_path, tokenizer, monkeypatch, budget, planned):
    clock = iter([0.0, 5.0, 5.0, 65.0, 70.0, 100.0])
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    members = {"step-0": ["arm=one-hot", "budget.steps=0"], "one-hot": [], "v": [], "done": []}
    save_recipe(tiny_recipe(tmp_path, tokenizer, budget=budget, evaluation={"points": 4}), tmp_path / "recipe.yaml")
    pace = _Pace(tmp_path, members, 2, {"done"})
    told = []
    for name in ("step-0", "one-hot", "v"):
        told.append(pace.left())
        with pace.timed(name):
            pass
    assert told == ["", planned, ", about 3:00 left in all"]  # three turns of a minute
    assert pace.left() == ", about 1:30 left in all"  # two turns of 45 seconds
