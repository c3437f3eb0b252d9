"""The JSON schema of recipes, by which editors complete and check them."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic.json_schema import models_json_schema

from vpretrain.modality import MODALITIES
from vpretrain.types import Json

FILE = Path(__file__).resolve().with_name("recipe.schema.json")


def schema_line(schema: str) -> str:
    """Return the first line of a recipe, which names the schema to an editor, by a URI or a path from the recipe."""
    return f"# yaml-language-server: $schema={schema}"


def recipe_schema() -> str:
    """Return the schema as the text of its file, made from the models that recipes are checked by."""
    models = {name: modality.recipe for name, modality in MODALITIES.items()}
    references, definitions = models_json_schema([(model, "validation") for model in models.values()])
    first, *others = models
    whole: Json = references[models[first], "validation"]  # of a recipe that names no other modality
    for name in others:
        named = {"properties": {"modality": {"const": name}}, "required": ["modality"]}
        whole = {"if": named, "then": references[models[name], "validation"], "else": whole}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe of vpretrain"}
    return json.dumps({**dialect, "type": "object", **whole, **definitions}, indent=1) + "\n"
