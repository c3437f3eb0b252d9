"""What the documentation says was measured is what the committed results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.speed import table as speed
from benchmarks.steering import flops
from benchmarks.steering.overview import overview
from benchmarks.steering.table import ablation_markdown, arms_markdown, markdown
from benchmarks.table import comparison_markdown, domains_markdown, paths_markdown
from benchmarks.verifier import markdown as verifier_markdown
from vpretrain.recipe import flat, load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
TABLES = [
    ("steering/results.json", "results.md", markdown),
    ("steering/flops.json", "results.md", flops.markdown),
    ("steering/flops-arms.json", "results.md", flops.by_arm),
    ("steering/ablation.json", "results.md", ablation_markdown),
    ("steering/ablation-designer.json", "results-designer.md", ablation_markdown),
    ("shift/results.json", "results.md", arms_markdown),
    ("gsm8k.json", "results-designer.md", comparison_markdown),
    ("multitask.json", "results-designer.md", domains_markdown),
    ("posttrain.json", "results-designer.md", paths_markdown),
    ("verifier.json", "feedback.md", verifier_markdown),
    ("speed/results.json", "speed.md", speed.markdown),
]

QUICKSTARTS = [("quickstart", "README.md"), ("quickstart-vision", "docs/vision.md")]


def recorded(name):
    return json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "document"), QUICKSTARTS)
def test_a_quickstart_was_recorded_with_the_settings_of_its_recipe(name, document):
    ran = flat(parse_recipe(recorded(name)["recipe"], origin=name).model_dump(mode="json"))
    today = flat(load_recipe(str(ROOT / "recipes" / f"{name}.yaml")).model_dump(mode="json"))
    assert ran == today, f"`make {name}`, copy its results.json to docs/{name}.json and its figures to {document}"


@pytest.mark.parametrize(("name", "document"), QUICKSTARTS)
def test_the_table_of_a_quickstart_is_what_was_recorded(name, document):
    names, *rows = [[cell.replace(" %", "%") for cell in row] for row in recorded(name)["table"]]
    written = (ROOT / document).read_text(encoding="utf-8").replace(" %", "%")
    tables = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
              for block in re.findall(r"(?:^\|.*\|\n)+", written, flags=re.MULTILINE)]  # fmt: skip
    (table,) = [table for table in tables if "step-0" in [row[0] for row in table] and set(table[0]) <= set(names)]
    shown = [names.index(column) for column in table[0]]
    assert {"arm", "steps", "seconds"} <= set(table[0])
    assert table[2:] == [[row[place] for place in shown] for row in rows]


@pytest.mark.parametrize(("file", "document", "table"), TABLES)
def test_tables_in_the_documentation_are_those_of_the_results(file, document, table):
    report = json.loads((ROOT / "benchmarks" / file).read_text(encoding="utf-8"))
    assert table(report) in (ROOT / "docs" / document).read_text(encoding="utf-8")


def test_the_overview_of_the_streams_is_that_of_the_results():
    results, flops = (
        json.loads((ROOT / f"benchmarks/steering/{name}.json").read_text(encoding="utf-8"))
        for name in ("results", "flops")
    )
    assert overview(results, flops) in (ROOT / "docs/results.md").read_text(encoding="utf-8")


def test_the_list_of_benchmarks_is_that_of_the_makefile():
    targets = re.findall(r"^(bench-[a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = (ROOT / "docs/results.md").read_text(encoding="utf-8").split("## To run it again")[1]
    listed = re.findall(r"^\| `make (bench-[a-z0-9-]+)` \|", section, flags=re.MULTILINE)
    assert sorted(listed) == sorted(targets)


def test_results_have_the_promised_form():
    report = json.loads((ROOT / "benchmarks/steering/results.json").read_text(encoding="utf-8"))
    assert set(report["conditions"]) == {"clean", "off-topic", "noisy", "format-shift"}
    for found in report["conditions"].values():
        assert found["seeds"] == 10
        assert {"pearson", "slope"} <= set(found["probe"])
        assert set(found["v_minus"]) == set(found["arms"]) - {"step-0", "v"}
        for arm, figures in found["arms"].items():
            assert all({"mean", "low", "high"} == set(figures[key]) for key in ("target_nll", "retention_nll"))
            assert arm == "one-hot" or {"mean", "low", "high"} <= set(figures["minus_one_hot"])
            assert arm == "step-0" or "seconds_to_one_hot" in figures
