"""Comparisons beside each other: the same numbers as in their files, and differences only where the cases are the same."""

from __future__ import annotations

import json

import pytest
from report.directories import write_comparison, write_json, write_run
from report.page import Page

from vpretrain.cli.parser import main
from vpretrain.recipe import load_recipe, save_recipe
from vpretrain.report.across import across
from vpretrain.report.collect import collect
from vpretrain.report.page import report


def change(directory, arm, by=0.0, key="{}", only=None):
    """Lower the NLL of an arm's problem n by `by` + n/100, and name the problems anew."""
    for file in directory.glob(f"{arm}*/result.json"):
        result = json.loads(file.read_text())
        for n, problem in enumerate(result["problems"]):
            problem["nll"] -= by + n / 100 if by else 0
            problem["key"] = key.format(n)
        result["problems"] = result["problems"][:only]
        write_json(file, result)


@pytest.fixture
def two(tmp_path):
    """Two comparisons; in the second v is better, and everything else as it is in the first."""
    for name in ("first", "second"):
        write_comparison(tmp_path / name)
    change(tmp_path / "second", "v", by=0.1)
    return tmp_path


def found(root, *names):
    return across([collect(root / name) for name in names])


def test_each_arm_of_each_comparison_has_a_row(two):
    head, *rows = found(two, "first", "second").results.rows
    assert head[:3] == ["arm", "comparison", "answer NLL [95 %]"]
    assert [row[:2] for row in rows] == [[arm, of] for arm in ("step-0", "one-hot", "v") for of in ("first", "second")]


def test_differences_are_paired_over_the_cases_and_seeds_that_both_have(two):
    table = found(two, "first", "second").differences
    rows = {row[0]: row[1:] for row in table.rows[1:]}
    assert rows["one-hot"][:4] == ["second minus first", "nats per token", "+0.0000", "[+0.0000, +0.0000]"]
    assert rows["one-hot"][5] == "cannot be told from first"
    assert rows["v"][2] == "-0.1350"  # 0.1 and the mean of 0, 0.01 ... 0.07
    assert rows["v"][4:] == ["8 problems and 2 seeds", "is better than first"]
    assert rows["step-0"][4] == "8 problems"
    (line,) = [line for line in found(two, "first", "second").lines if line.startswith("v,")]
    assert line.startswith("v, second minus first: -0.1350 nats per token, 95 % interval [-0.1")
    assert line.endswith("; second is better than first")


def test_differences_of_the_untouched_learner_are_corrected_too(two, monkeypatch):
    corrected = []
    monkeypatch.setattr("vpretrain.report.across.correct", lambda some: corrected.extend(some))
    table = found(two, "first", "second").differences
    assert len(corrected) == len(table.rows) - 1


def test_only_the_cases_that_all_runs_have_count(two):
    change(two / "second", "v.1", by=0.0, only=3)
    rows = {row[0]: row[1:] for row in found(two, "first", "second").differences.rows[1:]}
    assert rows["v"][4] == "3 problems and 2 seeds"
    for arm in ("step-0", "one-hot", "v"):
        change(two / "second", arm, key="another {}")
    nothing = found(two, "first", "second")
    assert nothing.differences is None
    assert nothing.lines == ["no differences: no arm has two cases that are known to be the same in first and second"]


def test_without_a_common_seed_each_case_is_averaged_first(two, tmp_path):
    write_comparison(tmp_path / "third", seeds=(5,))
    rows = {row[0]: row[1:] for row in found(two, "second", "third").differences.rows[1:]}
    assert rows["v"][2] == "+0.1350"
    assert rows["v"][4] == "8 problems, means over seeds"


def test_settings_in_which_they_differ_are_listed(two):
    assert found(two, "first", "second").settings is None
    recipe = load_recipe(two / "second/recipe.yaml", ["optimizer.lr=0.1", "learner.name=/home/somebody/other"])
    save_recipe(recipe, two / "second/recipe.yaml")
    assert found(two, "first", "second").settings.rows == [
        ["setting", "first", "second"],
        ["learner.name", "learner", "other"],
        ["optimizer.lr", "3e-05", "0.1"],
    ]


def test_single_runs_and_one_comparison_have_nothing_beside_them(two):
    write_run(two / "alone", "v", 0, 1.2)
    assert found(two, "first", "alone") is None
    assert found(two, "first") is None


def test_the_page_and_the_terminal_show_it(two, capsys):
    page = Page(report([two / "first", two / "second"], two / "report.html").read_text(encoding="utf-8"))
    assert page.tables["Results side by side"][1][:2] == ["step-0", "first"]
    assert "Differences between comparisons" in page.tables
    ids = [a["id"] for tag, a in page.tags if "id" in a and tag in ("h2", "h3")]
    assert ids[:2] == ["across", "study-1"]
    assert [a["href"] for tag, a in page.tags if tag == "a"][1] == "#across"
    assert main(["report", str(two / "first"), str(two / "second")]) == 0
    assert (two / "first/report-with-second.html").exists()
    assert not (two / "first/report.html").exists()  # of the first alone
    printed = " ".join(capsys.readouterr().out.split())
    assert "first: After equal training time" in printed
    assert "v, second minus first: -0.1350 nats per token" in printed
