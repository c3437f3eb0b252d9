"""Parts that are made from the source: the pages of commands and settings, the tables of arms, and the schema of recipes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vpretrain.arms import Arm
from vpretrain.cli.parser import _parser
from vpretrain.modality import MODALITIES
from vpretrain.recipe import _model_in
from vpretrain.schema import recipe_schema

_INTRODUCTION = """# Every setting

Made from the models by which recipes are checked: one page per section, each with an example. `vpretrain settings` prints
the same, `vpretrain settings stream` one section. A setting is given in the recipe, or after a command as `field=value` with
dots, e.g. `optimizer.lr=1e-5 stream.sources.0.limit=100`. Unknown names are refused. An `N` in a name is a number from 0: the
section is a list.
"""
_COMMANDS = """# Commands

Made from the parser of the command line; `vpretrain COMMAND --help` prints the same. `vpretrain --version` prints the version.
`--quiet` and `--verbose` ([logs](watching.md#logs)) stand before or after the command; `--trust-remote-code`, which lets a
learner run Python code that comes with it, stands before the command only. Exit codes are 0, 1 after a failed check
(`doctor`, `replay`), 2 for wrong input, 74 where a disk or a connection fails under a run, 75 after a pause (`run --until`),
and 128 + n after signal n. The settings for
`field=value` have [their own pages](settings.md), as have the arms of [language](language.md#arms) and
[vision](vision.md#arms).
"""
_RUN = "run"  # the page of the settings outside sections
_EVERYWHERE = {"--help", "--quiet", "--verbose"}  # in every command
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
    (docs / "commands.md").write_text(commands_page(), encoding="utf-8")
    for name, text in settings_pages(docs).items():
        (docs / name).write_text(text, encoding="utf-8")
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


def commands_page() -> str:
    """Markdown: what each command does, with examples and its arguments."""
    (commands,) = (a.choices for a in _parser()[0]._actions if isinstance(a, argparse._SubParsersAction))
    rows = [f"| [{name}](#{name}) | {_escaped(command.description)} |" for name, command in commands.items()]
    lines = [_COMMANDS, "| command | what it does |", "|---|---|", *rows]
    for name, command in commands.items():
        examples = command.epilog.split("\n\n")[0].removeprefix("Example:\n").replace("\\\n", "")
        calls = [f"$ {' '.join(line.split())}" for line in examples.splitlines()]
        arguments = [_argument(action) for action in command._actions if not _EVERYWHERE & set(action.option_strings)]
        lines += ["", f"## `{name}`", "", _escaped(command.description), "", "```console", *calls, "```", ""]
        lines += ["| argument | meaning |", "|---|---|", *arguments]
    return "\n".join(lines) + "\n"


def _argument(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    value = value if action.nargs not in ("*", "+") else f"{value} ..."
    if not action.option_strings:
        name = f"[{value}]" if action.nargs in ("?", "*") else value
    else:
        name = action.option_strings[0] if action.nargs == 0 else f"{action.option_strings[0]} {value}"
    text = (action.help or "") % vars(action) + (" (required)" if action.option_strings and action.required else "")
    return f"| `{name}` | {_escaped(text)} |"


def settings_pages(docs: Path) -> dict[str, str]:
    """Markdown by file name: a page per section of a recipe, and one that lists them."""
    examples: dict[str, str] = {}
    tables: dict[str, dict[tuple[str, str], list[str]]] = {}  # by section; the modalities of each table
    abouts: dict[str, list[str]] = {}
    for modality, entry in MODALITIES.items():
        texts = _examples((docs / f"settings/{modality}.yaml").read_text(encoding="utf-8"))
        for prefix, model in sections(entry.recipe, ""):
            name = prefix.removesuffix(".") or _RUN
            section = name.split(".")[0]
            about = (model.__doc__ or "").strip().split("\n")[0]
            table = f"{_escaped(about)}\n\n{_table(prefix, model)}\n"
            tables.setdefault(section, {}).setdefault((name, table), []).append(modality)
            if name == section:
                examples[section] = examples.get(section, "") + f"\nIn {modality}:\n\n```yaml\n{texts[section]}\n```\n"
                abouts[section] = list(dict.fromkeys([*abouts.get(section, []), about]))
    listed = [f"| [{section}](settings/{section}.md) | {_escaped(' '.join(abouts[section]))} |" for section in tables]
    contents = ["```{toctree}", ":hidden:", "", *(f"settings/{section}" for section in tables), "```", ""]
    pages = {
        "settings.md": "\n".join([_INTRODUCTION, "| section | what it sets |", "|---|---|", *listed, "", *contents])
    }
    for section, by_name in tables.items():
        title = "The run itself" if section == _RUN else f"`{section}`"
        parts = (
            f"\n## {' and '.join(used).capitalize()}: `{name}`\n\n{table}" for (name, table), used in by_name.items()
        )
        pages[f"settings/{section}.md"] = f"# {title}\n{examples[section]}{''.join(parts)}"
    return pages


def _examples(recipe: str) -> dict[str, str]:
    """The text of each section of a recipe; the lines above the first section are the run's own."""
    blocks = recipe.split("\n", 1)[1].strip().split("\n\n")  # below the comment at the top
    return {_RUN: blocks[0]} | {block.split(":", 1)[0]: block for block in blocks[1:]}


def _table(prefix: str, model: type[BaseModel]) -> str:
    fields = {prefix + name: field for name, field in model.model_fields.items()}
    rows = [_row(name, field) for name, field in fields.items() if _model_in(field.annotation) is None]
    return "\n".join(["| setting | type | default | limits | meaning |", "|---|---|---|---|---|", *rows])


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
    """As Markdown in a table that shows it as it is, but for code in backticks."""
    parts = text.split("`")
    return "`".join(p if i % 2 else re.sub(r"([\\*_\[\]<>|{}$^])", r"\\\1", p) for i, p in enumerate(parts))
