"""The schema by which editors complete recipes is that of the models, and it takes what they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vpretrain.schema import FILE, recipe_schema, schema_line

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def errors(data):
    jsonschema = pytest.importorskip("jsonschema", reason="part of the development tools")
    jsonschema.Draft202012Validator.check_schema(schema := json.loads(recipe_schema()))
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(data)]


def test_the_file_is_current():
    assert FILE.read_text(encoding="utf-8") == recipe_schema(), "`make docs` writes it anew"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_and_fits_it(path):
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == schema_line("../src/vpretrain/recipe.schema.json")
    assert (path.parent / "../src/vpretrain/recipe.schema.json").resolve() == FILE.resolve()
    assert errors(yaml.safe_load(text)) == []


def test_a_wrong_name_a_wrong_arm_and_a_number_beyond_its_limit_do_not_fit():
    recipe = yaml.safe_load(next(path for path in RECIPES if path.stem == "quickstart").read_text(encoding="utf-8"))
    assert "'lenght'" in errors(recipe | {"stream": recipe["stream"] | {"lenght": 64}})[0]
    assert "'fixed' is not one of" in errors(recipe | {"arm": "fixed"})[0]  # an arm of vision
    assert "maximum" in errors(recipe | {"optimizer": {"lr": 1000}})[0]
    assert "'budget' is a required property" in errors({k: v for k, v in recipe.items() if k != "budget"})[0]


def test_vision_has_its_own_settings():
    recipe = yaml.safe_load(
        next(path for path in RECIPES if path.stem == "quickstart-vision").read_text(encoding="utf-8")
    )
    assert errors(recipe | {"arm": "fixed"}) == []
    assert "'one-hot' is not one of" in errors(recipe | {"arm": "one-hot"})[0]
