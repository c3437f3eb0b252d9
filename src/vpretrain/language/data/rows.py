"""Rows of JSON as their file spells them: no value is converted, so none can change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from vpretrain.errors import Unreadable
from vpretrain.types import Json

_DEEPEST = 100  # levels of nesting; functions below call themselves once per level
HALF_PAIR = "has half a surrogate pair (such as \\ud800), which is no character"
_TOO_DEEP = f"is nested more than {_DEEPEST} deep"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NoRow(ValueError):
    """A text is no row.

    Args:
        message: a sentence without its subject.
        end: where what stands there ends in the text around it; None: that is not known.
    """

    def __init__(self, message: str, end: int | None = None) -> None:
        super().__init__(message)
        self.end = end


class Number(str):
    """A number as its file spells it: 2, 2.0, 1e3 and -0 stay what they are, and so does one that needs more than 64 bits."""


# Not strict: a tab or a line break within a text is accepted, since it can mean nothing else.
_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number, strict=False)


def parse(text: str) -> Json:
    """Parse a text that is one row. Raises NoRow, as `row_at`."""
    row, end = row_at(text, 0)
    if end < len(text):
        raise NoRow(f"is no JSON (Extra data, at character {end + 1})")
    return row


def row_at(text: str, start: int) -> tuple[Json, int]:
    """Parse the row that begins at `start`; also return its end. A text without an object around it is the field `text`.

    Raises:
        NoRow: none begins there.
    """
    try:
        row, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise NoRow(f"is no JSON ({error.msg}, at character {error.pos - start + 1})") from None
    except RecursionError:
        raise NoRow(_TOO_DEEP) from None
    if type(row) is str:  # and not a Number
        row = {"text": row}
    if not isinstance(row, dict):
        raise NoRow("is no object with fields", end)
    if text.count("[", start, end) + text.count("{", start, end) > _DEEPEST and _is_deeper(row, _DEEPEST):
        raise NoRow(_TOO_DEEP, end)
    if _SURROGATE.search(text, start, end):
        try:
            as_json(row).encode()
        except UnicodeEncodeError:
            raise NoRow(HALF_PAIR, end) from None
    return row, end


def rows_in(document: str, field: str) -> list[str]:
    """The texts of the items of a list, which is a field of a document of one object. Raises NoRow for another document."""
    try:
        found = _DECODER.decode(document)
    except json.JSONDecodeError as error:
        raise NoRow(f"is no JSON ({error.msg}, at character {error.pos + 1})") from None
    except RecursionError:
        raise NoRow(_TOO_DEEP) from None
    if not isinstance(found, dict):
        raise NoRow("is no object with fields")
    if _is_deeper(found, _DEEPEST + 2):  # the object and the list around a row
        raise NoRow(_TOO_DEEP)
    if not isinstance(found.get(field), list):
        raise NoRow(f"has no list in the field '{field}' (fields: {', '.join(found)})")
    return [as_json(item) for item in found[field]]


def spelled(value: object) -> str:
    """The text that stands for a value in templates: a text or number as it is, anything else as JSON; null is empty.

    Raises:
        Unreadable: the value is binary and no UTF-8.
    """
    if isinstance(value, bool | int | float | list | dict):
        return as_json(value)
    return "" if value is None else _as_text(value)


def as_json(value: object) -> str:
    """Write a value as JSON, each number as it was spelled. Raises as `spelled`."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        fields = (f"{json.dumps(str(name), ensure_ascii=False)}: {as_json(inner)}" for name, inner in value.items())
        return f"{{{', '.join(fields)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_json, value))}]"
    return json.dumps(value, ensure_ascii=False, default=_as_text)


def as_python(value: object) -> Any:
    """Return a value with numbers of Python in place of their spelling, for code that would take the spelling for a text."""
    if isinstance(value, Number):
        try:
            return json.loads(value)
        except ValueError:  # it has more digits than Python converts
            return value
    if isinstance(value, dict):
        return {name: as_python(inner) for name, inner in value.items()}
    return [as_python(inner) for inner in value] if isinstance(value, list) else value


def no_utf8(error: UnicodeDecodeError) -> Unreadable:
    """The error for a row with a value that is no text, without its place, which is not known here."""
    reason = f"is no UTF-8 (byte {error.start + 1} of a value is 0x{error.object[error.start]:02x})"
    return Unreadable(f"a row {reason}", reason=reason)


def _as_text(value: object) -> str:
    """The text of a value that JSON has no form for."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise no_utf8(error) from None
    return _iso(value) if isinstance(value, timedelta) else str(value)


def _iso(duration: timedelta) -> str:
    """A duration by ISO 8601, such as P1DT2H or -PT0.5S."""
    whole = 10**9 * (86_400 * duration.days + duration.seconds) + 1000 * duration.microseconds
    whole += getattr(duration, "nanoseconds", 0)  # Arrow gives those of nanoseconds as pandas' kind
    seconds, fraction = divmod(abs(whole), 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    second = f"{seconds}.{fraction:09}".rstrip("0").rstrip(".") if fraction else str(seconds)
    time = "".join(
        f"{count}{unit}" for count, unit in ((hours, "H"), (minutes, "M"), (second, "S")) if count not in (0, "0")
    )
    period = (f"{days}D" if days else "") + (f"T{time}" if time else "")
    return f"{'-' if whole < 0 else ''}P{period or 'T0S'}"


def _is_deeper(value: object, levels: int) -> bool:
    inner: Iterable[object] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(one, levels - 1) for one in inner)
