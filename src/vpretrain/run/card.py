"""The model card of a run in Hugging Face's format: training, data, and results beside the controls.

Names and texts come from recipes and data, and are escaped: all of them is shown as plain text.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_json, write_whole
from vpretrain.modality import modality_of
from vpretrain.plain import counted, without_folders
from vpretrain.recipe import flat, load_recipe
from vpretrain.run.versions import versions
from vpretrain.types import Json

_CITATION = """```bibtex
@misc{vpretraining2026,
  title         = {Learning What to Predict: Downstream-Guided Task Design for Continued Pretraining},
  author        = {Ke and Fanti},
  year          = {2026},
  eprint        = {2601.22108},
  archivePrefix = {arXiv},
  note          = {Version 2},
  url           = {https://arxiv.org/abs/2601.22108v2}
}
```"""
HASHES = "A hash of several files is that of the lines which sha256sum prints for them."
# What the table of settings shows even if it is the default, and what the card tells elsewhere.
_SHOWN = ("optimizer.lr", "stream.length", "stream.batch_size", "stream.accumulation")
_SHOWN_OF_VALUE = ("value.every_steps", "value.align", "value.subset")
_NOT_SHOWN = {"name", "arm", "seed", "output", "threads", "modality", "budget", "checkpoint", "tracking", "evaluation"}
_FEEDBACK = {"feedback", "designer", "value"}  # sections that affect a run only if there are meta updates
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_MARKUP = re.compile(r"([\\`*_\[\]#|~$@]|:(?=//))")


def provenance(recipe: Recipe) -> Json:
    """Return a run's versions, known base and data fingerprints as JSON; the data are None if they are gone."""
    try:
        data = modality_of(recipe).fingerprints(recipe)
    except (OSError, UserError):
        data = None
    return {"versions": versions(), "base": _base(recipe), "data": data}


def write_card(run: Path, model: Path, *, result: Json | None = None) -> None:
    """Write (or replace) README.md in `model` for the directory of a run; `result`: its metrics, else its result.json."""
    recipe = load_recipe(run / "recipe.yaml")
    result = result or _read(run / "result.json")
    made = _read(run / "provenance.json") or provenance(recipe)
    comparison = _comparison(run.absolute().parent / "results.json", result)
    write_whole(model / "README.md", model_card(recipe, result, made, comparison))


def model_card(recipe: Recipe, result: Json, made: Json, comparison: Json) -> str:
    """Return the card's text.

    Args:
        recipe: the run.
        result: its metrics; those of an unfinished run lack an evaluation.
        made: its `provenance`.
        comparison: the results.json of its comparison; empty: none.
    """
    sections = {
        "What was done": _done(recipe, result),
        "Settings": _settings(recipe, result),
        "Data": _data(made),
        "Results": _results(recipe, result, comparison),
        "Versions": ["- " + _text(line) for line in _versions(made)],
        "Citation": [_CITATION],
    }
    parts = [_front(recipe, made), f"# {_text(recipe.name)}"]
    parts += [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items()]
    return "\n\n".join(parts) + "\n"


def _front(recipe: Recipe, made: Json) -> str:
    """Return the metadata that the hub reads; it contains only what is known."""
    from huggingface_hub import ModelCardData

    base = made["base"]
    hubs = [source.get("hub") for source in made["data"] or () if source["role"].startswith(("stream", "feedback"))]
    data = ModelCardData(
        base_model=base.get("base_model"),
        license=base.get("license"),
        library_name="transformers",
        datasets=list(dict.fromkeys(hub for hub in hubs if hub and _HUB_NAME.fullmatch(hub))) or None,
        tags=["vpretrain", "v-pretraining", "continued-pretraining", f"arm:{recipe.arm}"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _base(recipe: Recipe) -> dict[str, str]:
    """Return base model and licence: the name of a hub learner, else the entries of a local learner's own card."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    name, local, found = recipe.learner.name, True, {}
    try:
        name = modality_of(recipe).resolve(name)
        local = Path(name).is_dir()
        card = Path(name) / "README.md" if local else try_to_load_from_cache(name, "README.md")
        found = (metadata_load(card) if isinstance(card, str | Path) else None) or {}
    except (OSError, ValueError, yaml.YAMLError):  # it is gone, or has no card
        pass
    known = {key: str(found[key]) for key in ("base_model", "license") if _HUB_NAME.fullmatch(str(found.get(key, "")))}
    return known if local or not _HUB_NAME.fullmatch(name) else known | {"base_model": name}


def _done(recipe: Recipe, result: Json) -> Iterator[str]:
    unit, updates = recipe.unit, result["meta_updates"]
    lora = " (LoRA; merged here, the adapter is in adapter/)" if getattr(recipe.learner, "lora", None) else ""
    yield f"- Base learner: {_text(without_folders(recipe.learner.name))}{lora}"
    yield f"- Arm: {_text(recipe.arm)}" + (" (V-pretraining)" if recipe.arm == "v" else "")
    yield (
        f"- Training: {counted(result['steps'], 'step')}, {result[unit]:,} {unit}, {result['seconds']:.1f} seconds "
        f"(evaluation, saving and loading not counted)"
        + (f", {counted(updates, 'meta update')} from feedback" if updates else "")
    )
    limits = [f"{recipe.budget.minutes:g} minutes"] if recipe.budget.minutes is not None else []
    limits += [counted(recipe.budget.steps, "step")] if recipe.budget.steps is not None else []
    yield f"- Budget: {' or '.join(limits)}; seed {recipe.seed}"
    if "name" not in result:
        yield "- Exported from a checkpoint, before the run had ended: not evaluated"


def _settings(recipe: Recipe, result: Json) -> list[str]:
    """Return the settings that are not defaults, and a few that readers look for."""
    everything = flat(recipe.model_dump(mode="json"))
    changed = flat(recipe.model_dump(mode="json", exclude_defaults=True))
    shown = (*_SHOWN, *(_SHOWN_OF_VALUE if result["meta_updates"] else ()))
    left_out = _NOT_SHOWN | (set() if result["meta_updates"] else _FEEDBACK)
    rows = [["setting", "value"]]
    for name, value in everything.items():
        section, *inner = name.split(".")
        of_source = inner[:1] in (["sources"], ["heads"], ["meta"])  # the table of the data shows it
        if (name in changed or name in shown) and section not in left_out and not of_source and name != "learner.name":
            rows.append([name, without_folders(str(value))])
    return _table(rows)


def _data(made: Json) -> list[str]:
    if made["data"] is None:
        return ["The data were gone when this card was written."]
    return [*_table(data_cells(made["data"])), "", HASHES]


def data_cells(data: Sequence[Json]) -> list[list[str]]:
    """Return the cells of the table of data fingerprints, row by row; the first row names the columns."""
    rows = [["role", "origin", "rows at most", "fingerprint"]]
    for source in data:
        details = [
            f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
            for key, value in source.items()
            if value is not None and key not in ("role", "origin", "hub", "rows")
        ]
        origin = source.get("origin") or source["hub"]
        count = "unknown" if source["rows"] is None else f"{source['rows']:,}"
        rows.append([source["role"], without_folders(origin), count, ", ".join(details)])
    return rows


def _versions(made: Json) -> Iterator[str]:
    yield from (f"{name} {version}" for name, version in made["versions"].items())
    yield from (f"{key}: {made[key]}" for key in ("commit", "hardware", "date") if made.get(key))


def _results(recipe: Recipe, result: Json, comparison: Json) -> list[str]:
    elsewhere = {"arm", "seed", "steps", recipe.unit, "seconds", "meta_updates"}
    rows = [
        [key, f"{value:.6g}" if isinstance(value, float) else f"{value:,}"]
        for key, value in result.items()
        if isinstance(value, int | float) and key not in elsewhere
    ]
    lines = _table([["figure", "value"], *rows]) if rows else ["Not evaluated."]
    if "warning" in result:
        lines += ["", f"Warning: {_text(result['warning'])}"]
    if comparison:
        headline = _text(modality_of(recipe).metrics.headline(recipe))
        lines += ["", f"All arms of the comparison; step-0 is the untouched learner. Measured: {headline}.", ""]
        lines += [*_table(comparison["table"]), "", *(f"- {_text(line)}" for line in comparison["remarks"])]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(map(_text, row))} |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]


def _text(text: str) -> str:
    """Escape a text for Markdown: no markup, no HTML, one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def setting(value: object) -> str:
    """Format a value as in a recipe; of absolute paths only the last part: home directories have names, reviews are blind."""
    return without_folders(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _comparison(file: Path, result: Json) -> Json:
    """Return the comparison that includes a run, in its present state; empty if there is none or the file is invalid."""
    try:
        comparison = _read(file)
        arms = [arm for arm in comparison["arms"].values() if arm["arm"] == result["arm"]]
        runs = {(run["seed"], run["seconds"]) for arm in arms for run in arm.get("runs", [arm])}
        shown = {
            "table": [[str(cell) for cell in row] for row in comparison["table"]],
            "remarks": [str(line) for line in comparison["remarks"]],
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return shown if (result["seed"], result["seconds"]) in runs else {}


def _read(file: Path) -> Json:
    return read_json(file) if file.exists() else {}
