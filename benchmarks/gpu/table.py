"""Results of `make bench-gpu` as Markdown, for the documentation."""

from __future__ import annotations

from typing import Any

from benchmarks.table import markdown_table
from vpretrain.compare.results import START

_COLUMNS = ("tokens per step", "tokens/s", "over one-hot", "added within the run", "peak GiB")
_GIB = 2**30


def markdown(report: dict[str, Any]) -> str:
    """Format what there is of a report: the tests, the timed arms, those under FSDP2, and bench-shift's."""
    device = report["device"]["name"]
    outcomes = list(report.get("tests", {}).get("outcomes", {}).values())
    counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in dict.fromkeys(outcomes))
    parts = [f"{device}, torch {report['versions']['torch']}. Tests: {counts or 'none'}.\n"]
    for title, section in (("", report.get("speed", {})), (", FSDP2", report.get("fsdp2", {}))):
        for learner, arms in section.items():
            rows = [row for arm, sizes in arms.items() for row in _rows(arm, sizes, arms.get("one-hot", {}))]
            parts.append(markdown_table((f"{learner}{title}: arm", *_COLUMNS), rows))
    if arms := report.get("shift", {}).get("arms"):
        rows = [
            (arm, f"{of['target_nll']['mean']:.4f}", f"{of['retention_nll']['mean']:.4f}", f"{of['steps']:.0f}")
            for arm, of in arms.items()
            if arm != START
        ]
        parts.append(markdown_table(("bench-shift: arm", "target NLL", "retention NLL", "steps"), rows))
    return "\n".join(parts)


def _rows(arm: str, sizes: dict[str, Any], base: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for size, found in sizes.items():
        if "error" in found:
            rows.append((arm, f"{int(size):,}", found["error"], "-", "-", "-"))
            continue
        over = base.get(size, {}).get("per_second")
        added = found["added_over_ordinary"]
        rows.append((
            arm,
            f"{int(size):,}",
            f"{found['per_second']:,.0f}",
            "-" if over is None else f"{found['per_second'] / over:.3f}",
            "-" if added is None else f"{added:.1%}",
            f"{found['peak_bytes'] / _GIB:.1f}",
        ))  # fmt: skip
    return rows
