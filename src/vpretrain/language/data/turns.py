"""The turns of a chat in a row, in the forms that files have, made those that chat templates expect: `role` and `content`.

ShareGPT's turns have `from` and `value`; content may be a list of parts; a table has the whole chat as JSON.
"""

from __future__ import annotations

import json

from vpretrain.language.data.rows import Number, as_python, spelled
from vpretrain.types import Json

ASSISTANT = "assistant"
_ROLES = {"human": "user", "gpt": ASSISTANT}
_NAMES = {"from": "role", "value": "content"}


def turns_of(value: object) -> list[Json] | None:
    """Return the turns that a value of a row holds, each with `role` and `content`; None if it holds no chat.

    A content that a text cannot stand for, such as an image's, stays a list.
    """
    if isinstance(value, str) and not isinstance(value, Number) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    turns = [_renamed(turn) for turn in value if isinstance(turn, dict)]
    if len(turns) < len(value) or not all(isinstance(turn.get("role"), str) and turn["role"] for turn in turns):
        return None
    return [_as_templates_expect(turn) for turn in turns]


def is_chat(value: object) -> bool:
    """Whether a value of a row holds the turns of a chat."""
    return turns_of(value) is not None


def calls_of(turn: Json) -> list[str]:
    """Return the names of the tools that a turn calls."""
    calls = turn.get("tool_calls")
    found = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = [call["function"] if isinstance(call.get("function"), dict) else call for call in found]
    return [str(function.get("name")) for function in functions]


def is_answer(turn: Json) -> bool:
    """Whether a turn is the assistant's and says something, or calls a tool."""
    return turn["role"] == ASSISTANT and bool(spelled(turn["content"]).strip() or turn.get("tool_calls"))


def _renamed(turn: Json) -> Json:
    return turn if "role" in turn else {_NAMES.get(name, name): value for name, value in turn.items()}


def _as_templates_expect(turn: Json) -> Json:
    """Templates write a tool's arguments as JSON, where a number has no quotes; they join the content with other text."""
    content = turn.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    others = {name: as_python(value) for name, value in turn.items() if name not in ("role", "content")}
    role = _ROLES.get(turn["role"], turn["role"])
    return {"role": role, "content": content if isinstance(content, list) else spelled(content), **others}
