"""What is handed on: a wheel that works without the sources, and a citation that says what the cards say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from worlds import save_learner, sums, write_jsonl

from vpretrain import __version__
from vpretrain.run.card import _CITATION

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, by the setuptools that is there: no network, and nothing is left in the sources."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(root)]
    subprocess.run([*PIP, "wheel", *options, str(source)], check=True, timeout=120)
    (built,) = root.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "vpretrain").rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name}
    assert {"vpretrain/py.typed", "vpretrain/language/evaluation/tasks/omega.yaml"} <= wanted
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - packed == set()
    assert {name for name in packed if ".dist-info/" not in name} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_wheel_works_without_the_sources(wheel, tmp_path):
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-index", "--target", tmp_path / "lib", wheel], check=True, timeout=120
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(tmp_path / "lib")
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True, "timeout": 120}
    where = "import vpretrain, importlib.metadata as m; print(vpretrain.__file__, m.distribution('vpretrain')._path)"
    printed = subprocess.run([sys.executable, "-c", where], **run).stdout.split()
    assert all(Path(path).is_relative_to(tmp_path / "lib") for path in printed)
    printed = subprocess.run([str(tmp_path / "lib/bin/vpretrain"), "--version"], **run).stdout
    assert printed == f"vpretrain {__version__}\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_wheel_and_what_pip_installs_with_it_suffice_for_language(wheel, tmp_path, tokenizer):
    """In a new environment, from the index that pip is set to: with torch it is gigabytes. From own data to a run."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    installed = tmp_path / "venv/bin"
    pip = [installed / "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, wheel], check=True, timeout=3000)
    save_learner(tmp_path / "learner", tokenizer)
    write_jsonl(tmp_path / "stream.jsonl", [{"text": f"the sum of {n} numbers, again and again"} for n in range(30)])
    write_jsonl(tmp_path / "feedback.jsonl", sums(60, 1))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command in (
        "init mine.yaml --learner ./learner --stream stream.jsonl --feedback feedback.jsonl",
        "check mine.yaml",
        "run mine.yaml budget.steps=2 evaluation.problems=4 evaluation.max_new_tokens=4",
    ):
        words = [installed / "vpretrain", *command.split()]
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, (command, ended.stderr)
    assert json.loads((tmp_path / "runs/mine/result.json").read_text())["steps"] == 2


def test_the_citation_says_what_the_cards_say():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["version"] == __version__
    assert cff["license"] == "Apache-2.0"
    card = dict(re.findall(r"(\w+) += \{(.+)\}", _CITATION))
    paper = cff["preferred-citation"]
    assert paper["title"] == card["title"]
    assert " and ".join(author["family-names"] for author in paper["authors"]) == card["author"]
    assert str(paper["year"]) == card["year"]
    assert paper["identifiers"][0]["value"] == f"arXiv:{card['eprint']}"
    assert (paper["url"], paper["notes"]) == (card["url"], card["note"])


def test_the_changelog_tells_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in text
