"""Fingerprints of the data of a language run."""

from __future__ import annotations

import platform
from pathlib import Path

from vpretrain.language.config import Recipe, SourceConfig
from vpretrain.language.data.files import data_files
from vpretrain.language.data.source import count_rows
from vpretrain.run.fingerprint import generated, of_files, of_hub
from vpretrain.types import Json

_USED = {"field", "skip", "limit", "part", "exclude", "domain", "weight"}


def fingerprints(recipe: Recipe) -> list[Json]:
    """Fingerprint every source, with its role. Raises UserError or OSError for files that no longer exist."""
    roles = {
        "stream": recipe.stream.sources,
        "feedback": recipe.feedback.sources,
        "evaluation": recipe.evaluation.sources,
        "retention": recipe.evaluation.retention,
    }
    return [{"role": role, **_of(source)} for role, sources in roles.items() for source in sources]


def _of(source: SourceConfig) -> Json:
    """Fingerprint one source; `rows` is the maximum that a run may use."""
    used = source.model_dump(mode="json", include=_USED, exclude_defaults=True)
    if source.hub is not None:
        found = of_hub(source.hub, source.config, source.split)
        rows = [rows for rows in (found["rows"], source.limit) if rows is not None]
        return found | {"rows": min(rows, default=None)} | used
    if source.path is not None:
        files = [Path(file) for file in data_files(source)[0]]
        found = of_files(files)
    elif source.builtin is not None:
        found = {"package": f"Python {platform.python_version()}"}
    else:
        found = generated("reasoning-gym", options=source.options, size=source.size)
    return {"origin": source.origin, "rows": count_rows(source)} | found | used
