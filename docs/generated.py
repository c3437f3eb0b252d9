"""Parts that are made from the source: the page of every setting, the tables of arms, and the schema of recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vpretrain.arms import Arm
from vpretrain.modality import MODALITIES
from vpretrain.recipe import _model_in
from vpretrain.schema import recipe_schema

_INTRODUCTION = """# Every setting

Made from the models that recipes are checked by; `vpretrain settings` says the same, `vpretrain settings stream` that of a
section. A setting is given in the recipe, or after a command as `field=value` with dots, e.g.
`optimizer.lr=1e-5 stream.sources.0.limit=100`. Unknown names are refused. `N` is a number from 0: the section is a list.
"""
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null", Any: "anything"}
_LIMITS = {
    "ge": "≥ {}",
    "gt": "> {}",
    "le": "≤ {}",
    "lt": "< {}",
    "min_length": "length ≥ {}",
    "max_length": "length ≤ {}",
    "pattern": "matches {}",
}


def write(docs: Path) -> None:
    """Write the generated parts anew."""
    (docs / "settings.md").write_text(settings_page(), encoding="utf-8")
    schema = docs.parent / "src/vpretrain/recipe.schema.json"
    if schema.exists():  # it does not beside a copy of the pages
        schema.write_text(recipe_schema(), encoding="utf-8")
    for name, modality in MODALITIES.items():
        page = docs / f"{name}.md"
        table = arms_table(modality.recipe.arms)
        text = re.sub(r"\| arm \| task \|(\n\|.*)+", lambda _, new=table: new, page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")


def arms_table(arms: Mapping[str, Arm]) -> str:
    """Markdown: a row per arm."""
    rows = [f"| `{arm.name}` | {arm.summary} |" for arm in arms.values()]
    return "\n".join(["| arm | task |", "|---|---|", *rows])


def settings_page() -> str:
    """Markdown: a table per section, for each modality."""
    parts = [_INTRODUCTION]
    for modality in MODALITIES:
        recipe = MODALITIES[modality].recipe
        parts.append(f"## {modality.capitalize()}\n")
        for prefix, model in sections(recipe, ""):
            about = (model.__doc__ or "").strip().split("\n")[0]
            parts.append(f"### {f'`{prefix[:-1]}`' if prefix else 'The run itself'}\n\n{_escaped(about)}\n")
            fields = {prefix + name: field for name, field in model.model_fields.items()}
            rows = [_row(name, field) for name, field in fields.items() if _model_in(field.annotation) is None]
            parts += ["| setting | type | default | limits | meaning |", "|---|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and all below it, by their names with dots."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if (inner := _model_in(field.annotation)) is not None:
            many = any(get_origin(a) is list for a in (field.annotation, *get_args(field.annotation)))
            yield from sections(inner, f"{prefix}{name}.{'N.' if many else ''}")


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
    cells = [f"`{name}`", _type(field.annotation), default, limits(field), _escaped(field.description or "")]
    return f"| {' | '.join(cells)} |"


def limits(field: FieldInfo) -> str:
    """What a value must satisfy, in words."""
    marks = [*field.metadata, *_marks_in(field.annotation)]
    given = ((text, getattr(one, key, None)) for one in marks for key, text in _LIMITS.items())
    words = [text.format(_number(limit)) for text, limit in given if limit is not None]
    return _escaped(", ".join(dict.fromkeys(words))) or "-"


def _marks_in(annotation: Any) -> Iterator[Any]:
    """The limits of the parts of a union, list or tuple."""
    if get_origin(annotation) is Annotated:
        yield from (mark for one in annotation.__metadata__ for mark in getattr(one, "metadata", [one]))
    for part in get_args(annotation):
        yield from _marks_in(part)


def _number(limit: Any) -> str:
    return f"{limit:,}" if isinstance(limit, int) else str(limit)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_type, inner))
    if origin is list:
        return f"list of: {_type(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, inner))}]"
    if origin is dict:
        return f"mapping from {_type(inner[0])} to {_type(inner[1])}"
    return _NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation))


def _escaped(text: str) -> str:
    """As Markdown in a table that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|{}$^])", r"\\\1", text)
