"""Help, settings and names of commands."""

from __future__ import annotations

import re

import pytest
from commands import refusal

from vpretrain.cli.parser import main
from vpretrain.language.config import Recipe
from vpretrain.recipe import settings_help

COMMANDS = [
    "run", "compare", "pareto", "posttrain", "sweep", "probe", "profile", "gate", "report", "check", "estimate", "inspect",
    "doctor", "decontaminate", "evaluate", "export", "watch", "runs", "clean", "settings", "init", "replay",
]  # fmt: skip


def test_help_of_every_command_explains_every_option_and_shows_an_example(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "Example:" in capsys.readouterr().out


def test_the_help_of_run_fits_on_a_screen_and_names_the_command_for_the_rest(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 45
    assert sum(re.match(r"  [\w.]+ \(", line) is not None for line in lines) == 10
    assert any("vpretrain settings" in line for line in lines)


def test_settings_lists_all_or_those_whose_names_begin_so(capsys):
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_help() + "\n"
    assert main(["settings", "stream.sources.0.part"]) == 0
    only = capsys.readouterr().out.splitlines()
    assert only[0] == "Settings of a language recipe:"
    assert [line.split()[0] for line in only[1:]] == ["stream.sources.N.part"]
    assert main(["settings", "budget"]) == 0
    both = capsys.readouterr().out
    assert both.count("  budget.minutes (") == 2
    assert "optimizer" not in both
    assert "did you mean 'designer.alpha_max'?" in refusal(capsys, "settings", "designer.alfa_max")
    assert "vpretrain settings lists all" in refusal(capsys, "settings", "zzzz")


def test_an_unknown_command_gets_one_line_with_the_nearest(capsys):
    assert "there is no command 'chek': did you mean 'check'?" in refusal(capsys, "chek", "r.yaml")
    assert "did you mean 'compare'?" in refusal(capsys, "--trust-remote-code", "compere")
    told = refusal(capsys, "xyz")
    assert all(command in told for command in COMMANDS)


def test_help_explains_every_setting():
    lines = settings_help().splitlines()
    assert not [line for line in lines if line.endswith((": None", ": "))]
    assert any("designer.alpha_max (0.5):" in line for line in lines)
    assert len(lines) > 80


def test_every_setting_in_the_help_can_be_set():
    settings = [line.split()[0].split(".")[0] for line in settings_help().splitlines() if line.startswith("  ")]
    assert set(settings) == set(Recipe.model_fields)
