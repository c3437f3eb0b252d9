"""Examples: rows become text by the templates of their source, or turns of a chat."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.rows import spelled
from vpretrain.language.data.turns import is_answer, is_chat, turns_of
from vpretrain.plain import nearest
from vpretrain.types import Json

FIRST = 100  # rows in which a field must be found once
CHATS = ("messages", "conversations")  # usual columns of chats, ours and ShareGPT's
_KEY_DIGITS = 16  # hexadecimal
COLUMN = r"[\w#(-][\w ().%&#?!/+'*-]*?(?<! )"  # a name that templates can have
_FIELD = re.compile(rf"(?<!\\boxed)\{{({COLUMN})(?:\.(\d+))?\}}")  # \boxed{answer} is text
_ABSENT = object()
Scorer = Callable[[str], float]
"""Gives 1 for a right answer to a problem, and less for a wrong one."""


class ScoredRow(dict[str, Any]):
    """A row with a scorer of the answers to its problem, of which several may be right."""

    def __init__(self, row: Json, scorer: Scorer) -> None:
        super().__init__(row)
        self.scorer = scorer


@dataclass(frozen=True)
class Example:
    """One document, one prompt with its response, or one chat.

    Attributes:
        prompt: empty for raw text; of a chat the problem.
        response: the text that the loss is on; of a chat the assistant's last turn.
        domain: of its source.
        problem: the field values in the prompt's template (or the text's), without the text around them; of a chat the user's
            turns.
        solution: the field values in the response's template, or the assistant's turns; empty for raw text.
        fields: the row it came from.
        lacks: why nothing can be learned from it, such as `response null`; empty if it is whole.
        turns: of a chat, up to the assistant's last one.
        given: number of leading turns without a loss.
        scorer: judges answers to the problem in place of a comparison with its own; None: there is none.
    """

    prompt: str
    response: str
    domain: str
    problem: str
    solution: str
    fields: Json
    lacks: str = ""
    turns: tuple[Json, ...] = ()
    given: int = 0
    scorer: Scorer | None = None

    @cached_property
    def key(self) -> str:
        """Identity of the problem: equal for problems that differ in case and white space only."""
        return key_of(self.problem)

    def is_in(self, part: tuple[float, float]) -> bool:
        """Whether the problem hashes into a part of [0, 1)."""
        low, high = part
        return low <= int(self.key, 16) / 16**_KEY_DIGITS < high


def key_of(text: str) -> str:
    """Identity of a text: equal for texts that differ in case and white space only."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:_KEY_DIGITS]


def completed(config: SourceConfig, rows: Iterable[Json]) -> SourceConfig:
    """Say how rows become text, if the source does not, by the fields of the first ones.

    They are `text`, else a chat in `messages` or `conversations`, else TRL's `prompt` and `completion` (texts, or the parts of
    a chat).
    """
    if config.has_form:
        return config
    seen: Json = {}
    for row in itertools.islice(rows, FIRST):
        seen |= {name: value for name, value in row.items() if value is not None}
        if "text" in row:
            return config
    for name in CHATS:
        if name in seen:
            return config.model_copy(update={"messages": name})
    if "prompt" in seen and "completion" in seen:
        chat = isinstance(seen["prompt"], list) or is_chat(seen["prompt"])
        form: Json = (
            {"messages": ["prompt", "completion"]} if chat else {"prompt": "{prompt}", "response": "{completion}"}
        )
        return config.model_copy(update=form)
    return config


def templates(config: SourceConfig) -> dict[str, str]:
    """A source's templates (text, or prompt and response), or the default ones; none of chats."""
    if config.messages is not None:
        return {}
    if config.text is not None:
        return {"text": config.text}
    if config.prompt is not None and config.response is not None:
        return {"prompt": config.prompt, "response": config.response}
    if config.reasoning_gym is not None:
        return {"prompt": "Question: {question}\nAnswer:", "response": " {answer_cot}"}
    return {"text": "{text}"}


def fields_of(template: str) -> list[str]:
    """List the names of a template's fields; {name.0} may be an item of a list, or a column of that name."""
    found = _FIELD.findall(template)
    return [name for name, _ in found] + [f"{name}.{place}" for name, place in found if place]


def check_fields(config: SourceConfig, rows: Iterable[Json]) -> None:
    """Raise UserError for a field of the templates, or of `exclude`, that none of a source's first rows has.

    A field that only some rows have is no mistake: the examples of the others lack it. A template that is the same text in
    every row is one.
    """
    wanted = [(name, "", "") for name in config.exclude]
    wanted += [(name, "", f"messages: {name}") for name in _chat_fields(config)]
    for template in templates(config).values():
        wanted += [(name, place, template) for name, place in _FIELD.findall(template)]
    seen: Json = {}
    for row in itertools.islice(rows, FIRST):
        seen |= row
        wanted = [one for one in wanted if _find(row, one[0], one[1]) is _ABSENT]
        if not wanted:
            break
    if seen and wanted:
        raise _mistake(config, *wanted[0], seen)
    if seen:
        _check_templates(config, seen)


def render(row: Json, config: SourceConfig) -> Example:
    """Build an example from a row by the source's templates."""
    scorer = row.scorer if isinstance(row, ScoredRow) else None
    renamed = {
        field: names.get(spelled(row[field]), row[field]) for field, names in config.values.items() if field in row
    }
    row = row | renamed
    if config.messages is not None:
        return _chat(row, config)
    chosen = templates(config)
    if "text" in chosen:
        text, content, lack = _fill(chosen["text"], row)
        return Example("", text, config.domain, content, "", row, f"text {lack}" if lack else "")
    prompt, problem, no_prompt = _fill(chosen["prompt"], row)
    response, solution, no_response = _fill(chosen["response"], row)
    lacks = f"response {no_response}" if no_response else f"prompt {no_prompt}" if no_prompt else ""
    return Example(prompt, response, config.domain, problem, solution, row, lacks, scorer=scorer)


def _chat_fields(config: SourceConfig) -> list[str]:
    return [config.messages] if isinstance(config.messages, str) else config.messages or []


def _chat(row: Json, config: SourceConfig) -> Example:
    """Build an example from the turns of a chat."""
    turns: list[Json] = []
    given = 0
    lacks = ""
    for name in _chat_fields(config):
        given = len(turns)
        part = row.get(name, _ABSENT)
        if found := turns_of(part):
            turns += found
        else:
            absent = "missing" if part is _ABSENT else "null" if part is None else ""
            lacks = lacks or f"{name} {absent or 'no list of {role, content}'}"
    answers = [number for number, turn in enumerate(turns) if number >= given and is_answer(turn)]
    turns = turns[: answers[-1] + 1] if answers else turns
    problem = " ".join(spelled(turn["content"]) for turn in turns if turn["role"] == "user")
    solution = " ".join(spelled(turns[number]["content"]) for number in answers)
    if not lacks and not answers:
        lacks = "no turn of the assistant"
    if not lacks and not problem.strip():
        lacks = "no turn of the user"
    if not lacks and any(isinstance(turn["content"], list) for turn in turns):
        lacks = "a turn with a part that is no text, such as an image"
    response = spelled(turns[answers[-1]]["content"]) if answers else ""
    return Example(problem, response, config.domain, problem, solution, row, lacks, tuple(turns), given)


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
    found = row.get(f"{name}.{place}" if place else name, _ABSENT)
    if not place or found is not _ABSENT:
        return found
    found = row.get(name)
    return found[int(place)] if isinstance(found, list) and int(place) < len(found) else _ABSENT


def _check_templates(config: SourceConfig, columns: Collection[str]) -> None:
    """Raise UserError for a template that would stand in every row as it is written."""
    for setting, template in templates(config).items():
        for name in columns:
            if name.strip() and f"{{{name}}}" in template and not _FIELD.fullmatch(f"{{{name}}}"):
                raise UserError(
                    f"{config.origin}: {{{name}}} in {template!r} would stay as it is: a template can name columns of "
                    "letters, digits, spaces and _-.()/%&#?!+'* only; rename it"
                )
        if setting != "prompt" and not _FIELD.search(template):
            raise UserError(
                f"{config.origin}: the template {template!r} is the same text in every row: name a field in braces (fields: "
                f"{', '.join(columns)})"
            )


def _mistake(config: SourceConfig, name: str, place: str, template: str, seen: Json) -> UserError:
    """The error for a field that none of the first rows has; `seen` holds all of their fields."""
    fields = ", ".join(seen)
    if not template:
        return UserError(f"{config.origin}: no field '{name}' for exclude (fields: {fields})")
    if name in seen:
        value = spelled(seen[name])[:80]
        return UserError(f"{config.origin}: {{{name}.{place}}} in {template!r}: '{name}' is {value!r}")
    if not config.has_form:
        return UserError(f"{config.origin}: give text, prompt and response, or messages; its fields are {fields}")
    meant = nearest(name, seen, cutoff=0.4)
    hint = f": did you mean {{{meant}}}?" if meant else ""
    return UserError(f"{config.origin}: no field '{name}' for the template {template!r}{hint} (fields: {fields})")
