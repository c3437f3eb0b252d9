"""What is imported is what the package requires: alone for language, with the extra `vision` for vision."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

import vpretrain

SOURCE = Path(vpretrain.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Tried elsewhere before they are imported there, with a line that names the extra.
GUARDED = {"language/data/generated.py": {"reasoning_gym"}, "plot.py": {"matplotlib"}, "cli/parser.py": {"argcomplete"}}
INSTALLED = {name.lower().replace("_", "-") for names in packages_distributions().values() for name in names}


def plain(requirement):
    """The name in a requirement, as packages_distributions spells it in lower case with hyphens."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def required(*extras):
    """All that pip installs with the package and these extras, by what the installed packages say."""
    declared = [*PROJECT["dependencies"], *(name for e in extras for name in PROJECT["optional-dependencies"][e])]
    found, new = set(), {plain(requirement) for requirement in declared}
    while new:
        found |= new
        needed = [r for name in new & INSTALLED for r in requires(name) or [] if "extra ==" not in r]
        new = {plain(requirement) for requirement in needed} - found
    return found


def imported(tree):
    """The foreign modules that a file imports, but for those in a `try`, and those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name.split(".")[0] for name in names)
        yield from imported(node)


@pytest.mark.parametrize(("vision", "extras"), [(False, ()), (True, ("vision",))])
def test_every_import_is_a_requirement(vision, extras):
    installed, owners = required(*extras), packages_distributions()
    lacking, read = {}, 0
    for file in SOURCE.rglob("*.py"):
        place = file.relative_to(SOURCE).as_posix()
        if place.startswith("vision/") != vision:
            continue
        read += 1
        foreign = set(imported(ast.parse(file.read_text(encoding="utf-8")))) - sys.stdlib_module_names - {"vpretrain"}
        for name in foreign - GUARDED.get(place, set()):
            if not {owner.lower().replace("_", "-") for owner in owners.get(name, [])} & installed:
                lacking[place, name] = owners.get(name)
    assert not lacking
    assert read > 20


def test_the_versions_of_python_are_those_of_the_classifiers():
    versions = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith("Programming Language")]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
