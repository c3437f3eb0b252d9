"""The benchmark's results as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.table import interval, markdown_table
from benchmarks.vision.settings import WITH_PAPER

_COLUMNS = (
    "arm", "mIoU", "mIoU per image, minus fixed", "V minus it", "RMSE (m)", "RMSE per image, minus fixed", "V's minus it",
    "accuracy", "mAP", "steps", "images/s",
)  # fmt: skip


_AFTER = ("arm", "mIoU per image", "minus fixed", "RMSE per image (m)", "minus fixed")
_NAMES = {"miou": "mIoU", "depth_rmse": "RMSE"}


def markdown(report: dict[str, Any]) -> str:
    """Format the arms, with 95 % intervals of differences, the same after equal images, and what was to be shown."""
    rows = [_row(arm, figures, report["v_minus"]) for arm, figures in report["arms"].items()]
    parts, after = [markdown_table(_COLUMNS, rows)], report["after_equal"].get("images")
    if after is not None:
        rows = [_row_after(arm, found) for arm, found in after["arms"].items()]
        parts += [f"After equal images ({after['at']:,.0f}):\n", markdown_table(_AFTER, rows)]
    if report["bars"]:
        parts.append("".join(f"- {name}: {_said(bar)}\n" for name, bar in report["bars"].items()))
    return "\n".join(parts)


def _named(arm: str) -> str:
    return arm.replace(WITH_PAPER, " (its own settings)")


def _row_after(arm: str, found: dict[str, Any]) -> list[str]:
    cells = [_named(arm)]
    for key in ("miou", "depth_rmse"):
        cells += [f"{found['mean'][key]:.4f}", interval(found["minus_fixed"][key], "+", 4)]
    return cells


def _said(bar: dict[str, Any]) -> str:
    """Say what was found, and whether that was to be shown."""
    if "ratio" in bar:
        found = f"v has {bar['ratio']:.3f} of fixed's, at least {bar['least']} was to be shown"
    else:
        ahead, behind = (" and ".join(_NAMES[key] for key in bar[side]) or "nothing" for side in ("ahead", "behind"))
        found = f"v is ahead of fixed in {ahead}, behind in {behind} (95 % intervals off 0; ahead also after Holm's correction)"
    return f"{found}: {'met' if bar['met'] else 'missed'}"


def _row(arm: str, figures: dict[str, Any], v_minus: dict[str, Any]) -> list[str]:
    minus = figures["minus_fixed"] or {}
    return [
        _named(arm),
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
