"""Results of `vpretrain compare` as Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpretrain.compare.statistics import LEVEL

_COLUMNS = (
    "arm", "answer NLL", "minus one-hot", "V minus it", "retention NLL", "mean alpha", "steps", "tokens",
)  # fmt: skip


def comparison_markdown(results: dict[str, Any]) -> str:
    """Format one line per arm: means over seeds, and differences at the end of the budget with 95 % intervals."""
    differences = results["differences"]["nll"]
    rows = [
        (
            name,
            f"{arm['answer_nll']:.4f}",
            interval(differences[name].get("one-hot"), "+", 4),
            interval(differences["v"].get(name), "+", 4),
            f"{arm['retention_nll']:.4f}",
            f"{arm['mean_alpha']:.3f}" if arm["steps"] else "-",
            f"{arm['steps']:.0f}",
            f"{arm['tokens']:,.0f}",
        )
        for name, arm in results["arms"].items()
    ]
    return markdown_table(_COLUMNS, rows)


def domains_table(results: dict[str, Any]) -> list[list[str]]:
    """Return a header, then one line per arm: its NLL in each domain, with the difference from one-hot."""
    domains = {domain: found["nll"] for domain, found in results["by_domain"].items()}
    table = [["arm", *(f"{domain} NLL, minus one-hot" for domain in domains), "retention NLL", "steps"]]
    for name, arm in results["arms"].items():
        row = [name]
        for found in domains.values():
            minus = found["differences"][name].get("one-hot")
            row.append(f"{found['arms'][name]:.3f}" + (f", {interval(minus, '+')}" if minus else ""))
        table.append([*row, f"{arm['retention_nll']:.4f}", f"{arm['steps']:.0f}"])
    return table


def domains_markdown(results: dict[str, Any]) -> str:
    """Format the same table as Markdown."""
    header, *rows = domains_table(results)
    return markdown_table(header, rows)


def paths_markdown(results: dict[str, Any]) -> str:
    """Format results of `vpretrain posttrain`: one line per path, at its end."""
    columns = ("path", "answer NLL", "minus v", "Pass@1", "retention NLL", "tokens read", "seconds")
    rows = [
        (
            path,
            f"{found['end']['answer_nll']:.4f}",
            interval(found.get("minus", {}).get("v"), "+"),
            f"{found['end']['pass_at_1']:.1%}",
            f"{found['end']['retention_nll']:.4f}",
            f"{found.get('tokens', 0):,.0f}",
            f"{found.get('seconds', 0):.0f}",
        )
        for path, found in {"step-0": {"end": results["step-0"]}, **results["paths"]}.items()
    ]
    return markdown_table(columns, rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format rows under a header."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def filled_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows under a header, without the columns that hold dashes alone."""
    kept = [column for column in zip(columns, *rows, strict=True) if set(column[1:]) != {"-"}]
    header, *rest = zip(*kept, strict=True)
    return markdown_table(header, rest)


def interval(value: dict[str, Any] | None, sign: str, digits: int = 3) -> str:
    """Format a mean with its 95 % interval, if any; bold if it differs from 0 after a correction by Holm; None as a dash."""
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:{sign}.{digits}f}"
    text = f"{value['mean']:{sign}.{digits}f} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"
    return f"**{text}**" if value.get("p_holm", 1.0) < 1 - LEVEL else text
