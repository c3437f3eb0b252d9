"""Types that all parts share."""

from __future__ import annotations

from typing import Any, TypeAlias

Json = dict[str, Any]
"""A JSON object: results, a line of a log, provenance, a state in a checkpoint, a row of a dataset."""

Keywords = dict[str, Any]
"""Keyword arguments of a call that a type checker cannot follow."""

Model: TypeAlias = Any
"""A transformers model, also wrapped by PEFT: only its class knows its attributes."""
