"""An entry of a comparison: an arm, or an arm with its own settings, such as `v:value.align=dot:value.every_steps=4`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vpretrain.config import Recipe
from vpretrain.console import note
from vpretrain.errors import UserError
from vpretrain.plain import nearest
from vpretrain.recipe import parse_recipe, with_overrides

# Settings that all runs of a comparison share, or that the comparison sets.
_COMMON = ("modality", "name", "output", "arm", "seed", "learner.name", "budget", "evaluation")
_LONGEST = 100  # characters of a directory's name, without the suffixes that follow


@dataclass(frozen=True)
class Entry:
    """An arm with its own settings (`field=value`)."""

    arm: str
    settings: tuple[str, ...]

    @property
    def label(self) -> str:
        """The entry as it was given: its name in tables and results."""
        return ":".join([self.arm, *self.settings])

    @property
    def directory(self) -> str:
        """The label as the name of a run: `v-value.align-dot`; with a hash where dashes alone would be ambiguous."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.label)
        if len(name) <= _LONGEST and all(re.fullmatch(r"[\w.]+=[\w.-]+", text, re.ASCII) for text in self.settings):
            return name
        return f"{name[:_LONGEST]}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"


def parse_entry(text: str) -> Entry:
    """Parse `ARM` or `ARM:field=value:field=value`; a value may contain colons (`value.subset=name:REGEX`)."""
    arm, colon, settings = text.strip().partition(":")
    return Entry(arm, tuple(re.split(r":(?=[\w.]+=)", settings)) if colon else ())


def split_entries(text: str) -> list[str]:
    """Split entries at commas; commas in square brackets belong to a value."""
    return re.split(r",(?![^\[\]]*\])", text)


def check_entries(recipe: Recipe, texts: Sequence[str]) -> list[Entry]:
    """Return the entries, each once.

    Raises UserError: no entry, an unknown arm, or a setting that all runs share, that the recipe does not accept, or that the
    arm replaces by its own.
    """
    if isinstance(texts, str):
        raise UserError(f"arms are a list: give {split_entries(texts)}")
    entries = [parse_entry(text) for text in texts]
    unknown = [entry.arm for entry in entries if entry.arm not in recipe.arms]
    if not entries or "" in unknown:
        raise UserError(f"an arm without a name: choose from {', '.join(recipe.arms)}")
    if unknown:
        meant = nearest(unknown[0], recipe.arms)
        hint = f"did you mean {meant}? " if meant else ""
        raise UserError(f"unknown arm {', '.join(unknown)}: {hint}choose from {', '.join(recipe.arms)}")
    for entry in entries:
        for setting in entry.settings:
            field = setting.partition("=")[0].strip()
            if any(field == common or field.startswith(f"{common}.") for common in _COMMON):
                raise UserError(f"{entry.arm}: all runs share {field}; set it for the whole comparison")
        own = with_overrides(recipe.model_dump(mode="json"), [f"arm={entry.arm}", *entry.settings])
        _refuse_without_effect(parse_recipe(own, origin=entry.arm), recipe, entry)
    different: dict[tuple[str, frozenset[str]], Entry] = {}
    for entry in entries:
        if different.setdefault((entry.arm, frozenset(entry.settings)), entry) is not entry:
            note(f"{entry.label} is named twice, and runs once; several seeds show the scatter")
    return list(different.values())


def _refuse_without_effect(own: Recipe, recipe: Recipe, entry: Entry) -> None:
    """Raise UserError if the entry sets a value that its arm replaces: the run would be the arm's under another name."""
    fields = {setting.partition("=")[0].strip() for setting in entry.settings}
    for name, value in own.own_value.items():
        field = f"value.{name}"
        if field in fields or getattr(own.value, name) != getattr(recipe.value, name):
            raise UserError(f"{entry.arm}: {field} has no effect, since the arm has its own ({value}): leave it out")
