"""Plain data, as YAML gives it: read within bounds, searched, written line by line. Names: the nearest, plurals, last parts."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vpretrain.errors import UserError

_REPEATED = 50_000  # characters that aliases may repeat; a recipe repeats a few hundred
_ENDLESS = 10**12  # characters of a part that contains itself


def read_yaml(text: str | bytes, origin: str) -> Any:
    """Return the data of a YAML text.

    Aliases may repeat little: a few lines of aliases of aliases stand for more data than fits into memory.

    Raises:
        UserError: it is not valid, or its aliases repeat too much; the message names the origin, and quotes no line of the
            text, which may contain secrets.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        lengths: dict[yaml.Node, int] = {}
        if _length(node, lengths) - sum(map(_own_length, lengths)) > _REPEATED:
            raise UserError(
                f"{origin}: its aliases repeat more than {_REPEATED:,} characters: write those settings out"
            )
        return loader.construct_document(node)
    except UserError:
        raise
    except Exception as error:  # PyYAML raises many types for a value that does not fit its tag
        raise UserError(f"{origin} is not valid YAML: {_without_text(error)}") from None


def texts(data: object) -> Iterator[str]:
    """Yield all texts in nested data, as `plain_values` finds them."""
    return (value for value in plain_values(data) if isinstance(value, str))


def plain_values(data: object) -> Iterator[object]:
    """Yield all values in nested data that hold no others, keys among them.

    Each part is looked at once: in YAML it may be in many places, or contain itself.
    """
    seen: set[int] = set()
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict | list | tuple | set):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            waiting += [*part, *part.values()] if isinstance(part, dict) else part


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that a mistaken one is most like; None if none is like it, by the `cutoff` of `difflib`."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def nearest_file(path: Path, names: Iterable[str]) -> Path | None:
    """Return the file beside a path, itself excepted, whose name is most like it, extensions aside; None if none is like it."""
    by_stem = {name.partition(".")[0]: name for name in names if name != path.name}
    meant = nearest(path.name.partition(".")[0], by_stem)
    return None if meant is None else path.with_name(by_stem[meant])


def counted(number: int, what: str) -> str:
    """Return a number with what it counts, whose plural has an s."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def quoted(value: str | list[str]) -> str:
    """Write a text, or a list of texts, as YAML in one line."""
    return json.dumps(value, ensure_ascii=False)


def noted(setting: str, comment: str) -> str:
    """Return a line of YAML with a comment."""
    return f"{setting:<32} # {comment}"


def _length(node: yaml.Node, lengths: dict[yaml.Node, int]) -> int:
    """Count a part's characters, with aliases written out. `lengths` gets the counts of all parts, each once."""
    if node not in lengths:
        lengths[node] = _ENDLESS  # unless its own parts turn out to end
        lengths[node] = min(_ENDLESS, _own_length(node) + sum(_length(part, lengths) for part in _parts(node)))
    return lengths[node]


def _own_length(node: yaml.Node) -> int:
    return 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)


def _parts(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return itertools.chain(*node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _without_text(error: Exception) -> str:
    """Describe an error and its place without quoting the line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    if isinstance(error, yaml.YAMLError):
        return " ".join(str(error).split())
    return "it is nested too deep" if isinstance(error, RecursionError) else "a number, date or tag in it is none"


def without_folders(name: str) -> str:
    """Return only the last part of an absolute path: cards are published, and home directories contain names."""
    return Path(name).name if name.startswith(("/", "~")) else name
