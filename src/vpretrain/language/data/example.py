"""Examples: rows become text by the templates of their source."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.rows import spelled
from vpretrain.types import Json

FIRST = 100  # rows in which a field must be found once
KEY_DIGITS = 16  # hexadecimal
_FIELD = re.compile(r"\{([\w-]+)(?:\.(\d+))?\}")
_ABSENT = object()


@dataclass(frozen=True)
class Example:
    """One document, or one prompt with its response.

    Attributes:
        prompt: empty for raw text.
        response: the text that the loss is on.
        domain: of its source.
        problem: the field values in the prompt's template (or the text's), without the text around them.
        solution: the field values in the response's template; empty for raw text.
        fields: the row it came from.
        lacks: why nothing can be learned from it, such as `response null`; empty if it is whole.
    """

    prompt: str
    response: str
    domain: str
    problem: str
    solution: str
    fields: Json
    lacks: str = ""

    @cached_property
    def key(self) -> str:
        """Identity of the problem: equal for problems that differ in case and white space only."""
        return hashlib.sha256(" ".join(self.problem.casefold().split()).encode()).hexdigest()[:KEY_DIGITS]


def templates(config: SourceConfig) -> dict[str, str]:
    """A source's templates (text, or prompt and response), or the default ones."""
    if config.text is not None:
        return {"text": config.text}
    if config.prompt is not None and config.response is not None:
        return {"prompt": config.prompt, "response": config.response}
    if config.reasoning_gym is not None:
        return {"prompt": "Question: {question}\nAnswer:", "response": " {answer_cot}"}
    return {"text": "{text}"}


def check_fields(config: SourceConfig, rows: Iterable[Json]) -> None:
    """Raise UserError for a field of the templates, or of `exclude`, that none of a source's first rows has.

    A field that only some rows have is no mistake: the examples of the others lack it.
    """
    wanted = [(name, "", "") for name in config.exclude]
    for template in templates(config).values():
        wanted += [(name, place, template) for name, place in _FIELD.findall(template)]
    seen: Json = {}
    for row in itertools.islice(rows, FIRST):
        seen |= row
        wanted = [one for one in wanted if _find(row, one[0], one[1]) is _ABSENT]
        if not wanted:
            return
    if seen:
        raise _mistake(config, *wanted[0], seen)


def render(row: Json, config: SourceConfig) -> Example:
    """Build an example from a row by the source's templates."""
    renamed = {
        field: names.get(spelled(row[field]), row[field]) for field, names in config.values.items() if field in row
    }
    row = row | renamed
    chosen = templates(config)
    if "text" in chosen:
        text, content, lack = _fill(chosen["text"], row)
        return Example("", text, config.domain, content, "", row, f"text {lack}" if lack else "")
    prompt, problem, no_prompt = _fill(chosen["prompt"], row)
    response, solution, no_response = _fill(chosen["response"], row)
    lacks = f"response {no_response}" if no_response else f"prompt {no_prompt}" if no_prompt else ""
    return Example(prompt, response, config.domain, problem, solution, row, lacks)


def _fill(template: str, row: Json) -> tuple[str, str, str]:
    """Fill a template; a line that held only an empty field disappears.

    Returns:
        The text; the values filled in; and, if it has fields and all are empty, why: `missing`, `null` or `empty`.
    """
    contents: list[str] = []
    lacks: list[str] = []

    def value(match: re.Match[str]) -> str:
        found = _find(row, match[1], match[2])
        contents.append("" if found is _ABSENT else spelled(found))
        if not contents[-1].strip():
            lacks.append("missing" if found is _ABSENT else "null" if found is None else "empty")
        return contents[-1]

    lines = []
    for line in template.splitlines(keepends=True):
        filled = _FIELD.sub(value, line)
        if filled.strip() or not _FIELD.search(line):
            lines.append(filled)
    return "".join(lines), " ".join(contents), lacks[0] if lacks and len(lacks) == len(contents) else ""


def _find(row: Json, name: str, place: str | None) -> object:
    """The value of a template's field, at its place in a list if it names one; _ABSENT if the row has none."""
    found = row.get(name, _ABSENT)
    if not place:
        return found
    return found[int(place)] if isinstance(found, list) and int(place) < len(found) else _ABSENT


def _mistake(config: SourceConfig, name: str, place: str, template: str, seen: Json) -> UserError:
    """The error for a field that none of the first rows has; `seen` holds all of their fields."""
    fields = ", ".join(seen)
    if not template:
        return UserError(f"{config.origin}: no field '{name}' for exclude (fields: {fields})")
    if name in seen:
        value = spelled(seen[name])[:80]
        return UserError(f"{config.origin}: {{{name}.{place}}} in {template!r}: '{name}' is {value!r}")
    if config.text is None and config.prompt is None:
        return UserError(f"{config.origin}: give text, or prompt and response; its fields are {fields}")
    nearest = difflib.get_close_matches(name, list(seen), n=1, cutoff=0.4)
    hint = f": did you mean {{{nearest[0]}}}?" if nearest else ""
    return UserError(f"{config.origin}: no field '{name}' for the template {template!r}{hint} (fields: {fields})")
