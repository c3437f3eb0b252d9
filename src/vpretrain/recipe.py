"""Read and write recipes: YAML with `field=value` overrides, errors of one line, help for every setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import write_whole
from vpretrain.modality import MODALITIES
from vpretrain.plain import nearest, nearest_file, read_yaml, texts
from vpretrain.types import Json

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_OTHER_NAMES = {"learning_rate": "lr"}  # of settings in other libraries
# By which pydantic tells apart the types that a setting may have, at the end of the setting's place.
_TYPE = re.compile(r"(constrained|function)-|(literal|list|dict|tuple)\[|(str|int|float|bool)$")
_MOST_MEANT = 3  # settings of the same name that are listed
_FETCH = re.compile(r"^# (Fetch: .+)$", re.MULTILINE)
_SECRET = re.compile(r"://[^/\s@]+@|\bhf_[A-Za-z0-9]{16,}")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `field=value` overrides.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit; the message names the field and the remedy.

    Examples:
        >>> recipe = load_recipe("recipe.yaml", ["arm=v", "optimizer.lr=1e-5"])
        >>> recipe.optimizer.lr
        1e-05
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        there = Path(path).parent.glob("*.yaml") if isinstance(error, FileNotFoundError) else ()
        meant = nearest_file(Path(path), [file.name for file in there])
        hint = f"did you mean {meant}?" if meant else "recipes/ holds ready ones"
        raise UserError(f"cannot read the recipe {path}: {error.strerror}; {hint}") from None
    data = read_yaml(text, str(path))
    if data is None:
        raise UserError(f"{path} is empty: vpretrain init writes a recipe, and recipes/ holds ready ones")
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold fields such as `learner:` and `stream:`, not {type(data).__name__}")
    if all(isinstance(of, dict) and {*of} <= {"low", "high", "log", "choices"} for of in data.values()):
        raise UserError(f"{path} is a space to search, and no recipe: vpretrain sweep RECIPE --space {path}")
    return parse_recipe(with_overrides(data, overrides or []), origin=str(path))


def how_to_fetch(path: str | Path) -> str:
    """Return what a recipe says on its line `# Fetch:` of what it needs; empty if it has none."""
    found = _FETCH.search(Path(path).read_text(encoding="utf-8", errors="replace"))
    return f"; the recipe says: {found[1]}" if found else ""


def with_overrides(data: Json, overrides: Sequence[str]) -> Json:
    """Apply `field=value` overrides to a recipe's plain data in place, and return it. Raises UserError."""
    for override in overrides:
        _apply(data, override)
    return data


def parse_recipe(data: Json, origin: str = "recipe") -> Recipe:
    """Return a recipe from plain data. Raises UserError, of one line.

    Examples:
        >>> data = load_recipe("recipe.yaml").model_dump(mode="json")
        >>> data["budget"] = {"minutes": 5}
        >>> parse_recipe(data).budget.minutes
        5.0
    """
    if any(map(secret, texts(data))):
        raise UserError(
            f"{origin} holds a password or token, and recipes are saved with every run: "
            "give it as HF_TOKEN in the environment, or in ~/.netrc"
        )
    modality = data.get("modality", "language")
    if modality not in list(MODALITIES):  # a list: the value may be unhashable
        raise UserError(f"{origin}: modality '{modality}' is unknown: choose from {', '.join(MODALITIES)}")
    model = MODALITIES[modality].recipe
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_explained(model, error.errors())[:3])) from None


def secret(text: str) -> bool:
    """Whether a text contains a password or token."""
    return _SECRET.search(text) is not None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe with every setting spelled out."""
    write_whole(path, _as_text(recipe.model_dump(mode="json")))


def refuse_to_replace(file: Path) -> None:
    """Raise UserError if a recipe is there that `save_recipe` has not written: people keep their own beside their data."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        saved = _as_text(read_yaml(text, str(file))) == text
    except UserError:
        saved = False
    if not saved:
        raise UserError(
            f"{file} was written by hand, and a run there would replace it: change `output`, or use name=..."
        )


def _as_text(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def refuse_changes(recipe: Recipe, saved: Path, *, except_for: set[str]) -> None:
    """Raise UserError, with the differences, if a recipe is not the saved one of the work that it is to resume.

    `except_for` has the dotted names of settings that may differ, or the names of whole sections.
    """
    before, after = (flat(one.model_dump(mode="json", exclude=except_for)) for one in (load_recipe(saved), recipe))
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key not in except_for
    ]
    if changed:
        raise UserError(
            f"--resume with a changed recipe would not be the same work ({'; '.join(changed)}); "
            "undo it or use name=...; a run goes on with --accept-changes"
        )


def flat(data: Any, prefix: str = "") -> Json:
    """Return nested settings by their dotted names; a list of plain values is one setting."""
    listed = isinstance(data, list) and any(isinstance(inner, dict | list) for inner in data)
    if not data or not (listed or isinstance(data, dict)):
        return {prefix[:-1]: data}
    items = enumerate(data) if listed else data.items()
    return {name: value for key, inner in items for name, value in flat(inner, f"{prefix}{key}.").items()}


def _apply(data: Json, override: str) -> None:
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise UserError(f"override '{key}' must have the form field=value, e.g. optimizer.lr=1e-5")
    try:
        value = read_yaml(text, key)
    except UserError:
        raise UserError(f"override '{key}': what follows the = is not a valid YAML value; quote it") from None
    *path, last = key.split(".")
    node: Any = data
    for part in path:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, key)
    if isinstance(node, list):
        _child(node, last, key)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"override '{key}': '{'.'.join(path)}' is a value and has no fields")


def _child(node: object, part: str, key: str) -> Any:
    if isinstance(node, dict):
        return node[part]
    if isinstance(node, list) and part in map(str, range(len(node))):
        return node[int(part)]
    raise UserError(f"override '{key}': there is no '{part}' there; lists are indexed from 0")


def _explained(recipe: type[BaseModel], problems: Sequence[ErrorDetails]) -> list[str]:
    """Return a sentence for every setting with a problem, of which one for each type that the setting may have."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for problem in problems:
        place = tuple(part for part in problem["loc"] if isinstance(part, int) or not _TYPE.match(part))
        found.setdefault(place, []).append(problem)
    return [
        _explain(recipe, of[0]) if len(of) == 1 else _fits_no_type(_dotted(place), of) for place, of in found.items()
    ]


def _fits_no_type(location: str, problems: Sequence[ErrorDetails]) -> str:
    wanted = [problem["msg"].removeprefix("Input should be ").split(", ")[0] for problem in problems]
    return f"'{location}': '{problems[0]['input']}' should be {' or '.join(wanted)}"


def _dotted(place: Iterable[int | str]) -> str:
    return ".".join(map(str, place))


def _explain(recipe: type[BaseModel], problem: ErrorDetails) -> str:
    location = _dotted(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{location}': {_meant(recipe, problem['loc'])}"
    if problem["type"] == "missing":
        wanted = re.sub(r"\.\d+\b", ".N", location)
        return f"'{location}' is missing: add it{_describe(recipe, problem['loc'])}; see vpretrain settings {wanted}"
    if problem["type"] == "string_pattern_mismatch":  # the description says it in words
        return f"'{location}': '{problem['input']}' does not fit{_describe(recipe, problem['loc'])}"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        meant = nearest(str(problem["input"]), re.findall(r"'([^']+)'", expected))
        hint = f"; did you mean '{meant}'?" if meant else ""
        return f"'{location}': '{problem['input']}' is unknown: choose from {expected}{hint}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"'{location}' holds fields, one per line, and no value of its own; see vpretrain settings {location}"
    if problem["type"] == "list_type" and isinstance(problem["input"], str):
        return f"'{location}' is a list: write [{problem['input']}]"
    if problem["type"] == "string_type" and isinstance(problem["input"], dict):
        return (
            f"'{location}' is a text: put quotes around its braces, as in '{location}=\"{{name}}\"' on a command line"
        )
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"].endswith("_parsing"):
        message += f" '{problem['input']}'"
    return f"'{location}': {message}" if location else message


def _meant(recipe: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return what an unknown key may stand for: a setting of its section that is like it, else those of its name elsewhere."""
    *section, last = map(str, location)
    last = _OTHER_NAMES.get(last, last)
    known = list(_model_at(recipe, location[:-1]).model_fields)
    if meant := nearest(last, known):
        return f"did you mean '{'.'.join([*section, meant])}'?"
    names = [line.split()[0].replace(".N.", ".0.") for line in _settings(recipe, "")]
    elsewhere = [f"'{name}'" for name in names if name.split(".")[-1] == last]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere[:_MOST_MEANT])}?"
    return f"known here: {', '.join(known)}"


def _model_at(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    for part in location:
        if part in model.model_fields:  # else a place in a list, or one of the types that a setting may have
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _describe(recipe: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return what a setting or a section is, in brackets."""
    field = _model_at(recipe, location[:-1]).model_fields.get(str(location[-1]))
    if field is None:
        return ""
    text = field.description or getattr(_model_in(field.annotation), "__doc__", None) or ""
    text = text.strip().split("\n")[0].removesuffix(".")
    return f" ({text[:1].lower()}{text[1:]})" if text else ""


def settings_help(prefix: str = "") -> str:
    """Return the settings of every modality whose names begin so, with defaults and meanings.

    Args:
        prefix: as in overrides, e.g. "stream" or "stream.sources.0.path".

    Raises:
        UserError: no setting's name begins so.
    """
    prefix = re.sub(r"\.\d+(?=\.|$)", ".N", prefix)
    found = {name: lines for name in MODALITIES if (lines := settings_lines(name, prefix))}
    if not found:
        names = {line.split()[0] for name in MODALITIES for line in settings_lines(name)}
        meant = nearest(prefix, names | {name.split(".")[0] for name in names})
        hint = f"did you mean '{meant}'?" if meant else "vpretrain settings lists all"
        raise UserError(f"no setting's name begins with '{prefix}': {hint}")
    return "\n\n".join(f"Settings of a {name} recipe:\n" + "\n".join(lines) for name, lines in found.items())


def settings_lines(modality: str, prefix: str = "") -> list[str]:
    """Return a line for every setting of a modality whose name begins so: name, default and meaning."""
    return [line for line in _settings(MODALITIES[modality].recipe, "") if line.split()[0].startswith(prefix)]


def setting_names() -> list[str]:
    """Return the dotted names of all settings, of a list's those of its first item."""
    lines = (line for modality in MODALITIES.values() for line in _settings(modality.recipe, ""))
    return list(dict.fromkeys(line.split()[0].replace(".N.", ".0.") for line in lines))


def setting_choices(name: str) -> list[str]:
    """Return the values that a setting may have by its dotted name, in any modality; empty if they cannot be listed."""
    *path, last = name.split(".")
    models = [_model_at(modality.recipe, tuple(path)) for modality in MODALITIES.values()]
    types = [model.model_fields[last].annotation for model in models if last in model.model_fields]
    return list(dict.fromkeys(choice for annotation in types for choice in _choices(annotation)))


def _choices(annotation: object) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    for inner in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield inner
        else:
            yield from _choices(inner)


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        if nested is not None:
            many = any(get_origin(a) is list for a in (field.annotation, *get_args(field.annotation)))
            yield from _settings(nested, f"{prefix}{name}.{'N.' if many else ''}")
            continue
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        yield f"  {prefix}{name} ({default}): {field.description}"


def _model_in(annotation: object) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
