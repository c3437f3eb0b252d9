"""Recipes of tiny learners for commands, and what a refused command prints."""

from __future__ import annotations

import yaml
from conftest import character_tokenizer
from worlds import merged, recipe_data

from vpretrain.cli.parser import main


def write_recipe(root, changes=None, **sections):
    """Saves a recipe with changes given as nested dictionaries; returns its path."""
    data = merged(recipe_data(root, character_tokenizer()) | {"threads": 1}, (changes or {}) | sections)
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def refusal(capsys, *arguments: str) -> str:
    """The one line that a wrong command prints; nothing else may be there."""
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("vpretrain: ")
    assert "Traceback" not in printed.err
    return printed.err
