"""Results of `vpretrain compare` as Markdown, for the documentation."""

from __future__ import annotations

from typing import Any

_COLUMNS = (
    "arm", "answer NLL", "minus one-hot", "V minus it", "retention NLL", "mean alpha", "steps", "tokens",
)  # fmt: skip


def comparison_markdown(results: dict[str, Any]) -> str:
    """A line an arm: means over seeds, and differences at the end of the budget with 95 % intervals."""
    differences = results["differences"]["nll"]
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for name, arm in results["arms"].items():
        cells = [
            name,
            f"{arm['answer_nll']:.4f}",
            interval(differences[name].get("one-hot"), "+", 4),
            interval(differences["v"].get(name), "+", 4),
            f"{arm['retention_nll']:.4f}",
            f"{arm['mean_alpha']:.3f}" if arm["steps"] else "-",
            f"{arm['steps']:.0f}",
            f"{arm['tokens']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(value: dict[str, float] | None, sign: str, digits: int = 3) -> str:
    """A mean with its 95 % interval; a dash for none."""
    if value is None:
        return "-"
    return f"{value['mean']:{sign}.{digits}f} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"
