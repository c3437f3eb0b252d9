"""The benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from benchmarks.table import filled_table, interval, markdown_table
from vpretrain.compare.statistics import correct

_COLUMNS = (
    "arm", "target NLL", "minus one-hot", "V minus it", "after one temperature each", "top-1", "retention NLL",
    "minus one-hot's", "mean alpha", "steps", "seconds to one-hot's end",
)  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Format one table per condition, with 95 % intervals."""
    blocks = []
    for condition, found in corrected(report["conditions"]).items():
        lines = [
            f"### {condition}",
            "",
            f"{found['seeds']} seeds; probe of V: {_probe(found['probe'])}.{_slow(found)}",
            "",
            _arms(found),
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def arms_markdown(report: dict[str, Any]) -> str:
    """Format the arms of a benchmark of one stream."""
    return _arms(corrected({"": report})[""])


def corrected(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with the differences corrected, over all conditions, for the number of those that are read together.

    These are the differences on the target, those after one temperature each, and those on the retention text.
    """
    copy = deepcopy(dict(conditions))
    arms = [figures for found in copy.values() for figures in found["arms"].values()]
    on_target = [figures["minus_one_hot"] for figures in arms if "minus_one_hot" in figures]
    for found in copy.values():
        on_target += [difference for arm, difference in found["v_minus"].items() if arm != "one-hot"]
        if "one-hot" in found["v_minus"]:  # the same difference stands in V's row
            found["v_minus"]["one-hot"] = found["arms"]["v"]["minus_one_hot"]
    correct(on_target)
    for key in ("tempered_minus_one_hot", "retention_minus_one_hot"):
        correct(figures[key] for figures in arms if figures.get(key) is not None)
    return copy


def _arms(found: dict[str, Any]) -> str:
    """Format the arms of one condition, without columns that are empty."""
    return filled_table(_COLUMNS, [_row(arm, figures, found) for arm, figures in found["arms"].items()])


def _row(arm: str, figures: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [
        arm,
        interval(figures["target_nll"], ""),
        interval(figures.get("minus_one_hot"), "+"),
        interval(found["v_minus"].get(arm), "+"),
        interval(figures.get("tempered_minus_one_hot"), "+"),
        "-" if figures.get("top_1") is None else f"{figures['top_1']:.1%}",
        f"{figures['retention_nll']['mean']:.3f}",
        interval(figures.get("retention_minus_one_hot"), "+"),
        f"{figures['mean_alpha']:.3f}" if figures.get("mean_alpha") is not None else "-",
        f"{figures['steps']:.0f}",
        _reached(figures),
    ]


def _slow(found: dict[str, Any]) -> str:
    return f" Runs far below their arm's median steps: {', '.join(found['slow'])}." if "slow" in found else ""


def _reached(figures: dict[str, Any]) -> str:
    """Format the seconds to one-hot's end, with the number of seeds that reach it."""
    time = figures.get("seconds_to_one_hot")
    if time is None:
        return "-"
    reached = f"{time['reached']} of {time['of']}"
    return reached if time["mean"] is None else f"{time['mean']:.1f} ({reached})"


def _probe(probe: dict[str, float | None]) -> str:
    text = f"r {probe['pearson']:.3f}, slope {probe['slope']:.2f} (S alone: r {probe['pearson_subset']:.3f}"
    if probe.get("pearson_seen") is not None:
        text += f"; along the direction in use: r {probe['pearson_seen']:.3f}"
    text += ")"
    if probe.get("pearson_gain") is not None:
        text += f"; gain over one-hot: r {probe['pearson_gain']:.3f}, slope {probe['slope_gain']:.2f}"
    return text


def ablation_markdown(report: dict[str, Any]) -> str:
    """Format each variant's NLL minus that of v, per condition."""
    conditions = report["conditions"]
    variants = list(next(iter(conditions.values())))
    rows = [
        (variant, *(interval(found[variant]["minus_v"], "+") for found in conditions.values()))
        for variant in variants
        if variant != "v"
    ]
    return markdown_table(("variant", *conditions), rows)
