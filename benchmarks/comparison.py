"""What the benchmarks that compare arms share: their options, what they compare, and what they print."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.command import console, parser_of
from vpretrain.compare.entry import split_entries
from vpretrain.compare.results import START
from vpretrain.compare.tables import remarks, table
from vpretrain.config import Recipe

_LONGEST = 150  # characters of a name, without the hash


def comparison_options(
    target: str, description: str | None, arms: Sequence[str], seeds: int, minutes: float, **more: Any
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that compares arms, with the options that all of them have and these defaults."""
    parser = parser_of(target, description, arms=arms, seeds=seeds, minutes=minutes, **more)
    parser.add_argument("--quick", action="store_true", help=f"{arms[0]} and v only, one seed")
    parser.add_argument(
        "--validation", action="store_true", help="evaluate on validation data: for every choice of settings"
    )
    return parser


def chosen(options: argparse.Namespace, baseline: str) -> tuple[list[str], list[int]]:
    """Return the arms and the seeds that are compared."""
    if options.quick:
        return [baseline, "v"], [0]
    return split_entries(options.arms), list(range(options.seeds))


def variant(options: argparse.Namespace) -> str:
    """Return a name for a benchmark with these options, part of a directory's: with a hash if some of them were cut off."""
    words = ["quick" if options.quick else f"{options.minutes:g}min"]
    words += [word for word in ("validation", "seen") if getattr(options, word, False)]
    whole = "-".join([*words, *options.settings])
    name = re.sub(r"[^A-Za-z0-9._-]", "-", whole)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def begun(recipe: Recipe) -> bool:
    """Whether some of a comparison's runs were made before."""
    return (recipe.directory / "recipe.yaml").exists()


def show(results: dict[str, Any], recipe: Recipe) -> None:
    """Print the table of a comparison, and the remarks on it."""
    screen = console()
    screen.print(table(results, recipe))
    for line in remarks(results, recipe):
        screen.print(line, highlight=False, markup=False)


def v_minus(differences: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of V from the other arms, the untouched learner apart."""
    return {arm: difference for arm, difference in differences.get("v", {}).items() if arm != START}
