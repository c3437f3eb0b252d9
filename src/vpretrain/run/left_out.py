"""Examples that a run met and did not use: how many, by source and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

LeftOut = Mapping[str, Mapping[str, int]]
"""Source -> reason -> number of examples; without sources and reasons that have none."""


def by_source(counts: Iterable[tuple[str, Mapping[str, int]]]) -> LeftOut:
    """Add up counts by reason that come with their source."""
    found: dict[str, Counter[str]] = {}
    for source, reasons in counts:
        found.setdefault(source, Counter()).update(reasons)
    return {source: +reasons for source, reasons in found.items() if +reasons}


def lines(left_out: LeftOut) -> list[str]:
    """Describe the counts, a line per source."""
    return [f"left out of {source}: {listed(reasons)}" for source, reasons in left_out.items()]


def listed(reasons: Mapping[str, int]) -> str:
    """Describe the counts of one source, the largest first."""
    largest_first = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} ({reason})" for reason, count in largest_first)
