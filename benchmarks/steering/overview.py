"""V minus one-hot on each stream: after equal time, equal tokens and equal FLOPs; and on the retention text."""

from __future__ import annotations

from typing import Any

from benchmarks.steering.flops import EQUAL_TOKENS
from benchmarks.steering.table import corrected
from benchmarks.table import interval, markdown_table

_COLUMNS = ("stream", "after equal time", "after equal tokens", "after equal FLOPs", "retention after equal time")


def overview(results: dict[str, Any], flops: dict[str, Any]) -> str:
    """Format one table from the reports of `make bench-steering` and `make bench-steering-flops`."""
    rows = []
    for condition, found in corrected(results["conditions"]).items():
        after_time, after_steps = found["arms"]["v"], flops["conditions"][condition]
        differences = (
            after_time["minus_one_hot"],
            after_steps["v" + EQUAL_TOKENS]["minus_one_hot"],
            after_steps["v"]["minus_one_hot"],
            after_time["retention_minus_one_hot"],
        )
        rows.append([condition, *(interval(difference, "+") for difference in differences)])
    return markdown_table(_COLUMNS, rows)
