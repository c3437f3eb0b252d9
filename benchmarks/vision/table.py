"""The benchmark's results as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.table import interval, markdown_table

_COLUMNS = (
    "arm", "mIoU", "mIoU per image, minus fixed", "V minus it", "RMSE (m)", "RMSE per image, minus fixed", "V's minus it",
    "accuracy", "mAP", "steps", "images/s",
)  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Format the arms, with 95 % intervals of differences, and what stands after equal images."""
    rows = [_row(arm, figures, report["v_minus"]) for arm, figures in report["arms"].items()]
    table, matched = markdown_table(_COLUMNS, rows), report["after_equal_images"]
    if matched is None:
        return table
    miou, rmse = (interval(matched["v_minus"][key].get("fixed"), "+", 4) for key in ("miou", "depth_rmse"))
    return (
        f"{table}\nAfter equal images ({matched['images']:,.0f}): V minus fixed {miou} mIoU and {rmse} m per image.\n"
    )


def _row(arm: str, figures: dict[str, Any], v_minus: dict[str, Any]) -> list[str]:
    minus = figures["minus_fixed"] or {}
    return [
        arm,
        f"{figures['miou']:.4f}",
        interval(minus.get("miou"), "+", 4),
        interval(v_minus["miou"].get(arm), "+", 4),
        f"{figures['depth_rmse']:.4f}",
        interval(minus.get("depth_rmse"), "+", 4),
        interval(v_minus["depth_rmse"].get(arm), "+", 4),
        f"{figures['accuracy']:.1%}",
        f"{figures['retrieval_map']:.4f}",
        f"{figures['steps']:.0f}",
        f"{figures['images_per_s']:.2f}" if figures["images_per_s"] else "-",
    ]
