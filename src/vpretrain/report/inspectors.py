"""What a report shows of single tokens and masks of a run."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup


def inspectors(run: Path) -> list[Markup]:
    """HTML fragments, whole in themselves, for a run's directory; none where it has nothing to look into."""
    return []
