"""Results of `make bench-speed` as Markdown, for the documentation."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.table import markdown_table

_MIB = 2**20


def markdown(report: dict[str, Any]) -> str:
    """Format the tables: steps by arm, phases, the meta update by engine, FLOPs over their floor, the loss."""
    parts = []
    for learner, arms in (*report["language"].items(), ("vision", report["vision"])):
        unit = "images" if learner == "vision" else "tokens"
        base = arms["fixed" if learner == "vision" else "one-hot"]
        rows = [
            (
                arm,
                f"{found['per_second']:.4g}",
                f"{found['per_second'] / base['per_second']:.3f}",
                "-" if found["added_over_ordinary"] is None else f"{found['added_over_ordinary']:.1%}",
                f"{found['peak_bytes'] / _MIB:,.0f}",
                f"{1e6 * (1 / found['per_second'] - 1 / base['per_second']):+.1f}",
                "-" if found["seconds_a_meta_update"] is None else f"{found['seconds_a_meta_update']:.2f}",
            )
            for arm, found in arms.items()
        ]
        columns = (
            f"{learner}: arm", f"{unit}/s", "over base", "added within the run", "peak MiB", f"us more per {unit[:-1]}",
            "s per meta update",
        )  # fmt: skip
        parts.append(markdown_table(columns, rows))
    for learner, arms in (("smollm2-135m", report["language"]["smollm2-135m"]), ("vision", report["vision"])):
        unit = "image" if learner == "vision" else "token"
        watched = {arm: found["microseconds"] for arm, found in arms.items() if found["microseconds"]}
        phases = [
            (name, *(f"{of[name]:.2f}" if name in of else "-" for of in watched.values()))
            for name in dict.fromkeys(itertools.chain(*watched.values()))
        ]
        parts.append(markdown_table((f"{learner}: phase, us per {unit}", *watched), phases))
    engines = [
        (row["engine"], row["align"], row["layers"], row["k"], row["tokens"], f"{row['seconds']:.3f}",
         f"{row['peak_bytes'] / _MIB:,.0f}")
        for row in report["meta"]
    ]  # fmt: skip
    parts.append(markdown_table(("engine", "align", "layers in S", "K", "tokens", "seconds", "peak MiB"), engines))
    found = report["flops"]
    parts.append(
        markdown_table(
            ("FLOPs over a learner step's", "counted", "floor", "ratio"),
            [
                (name, f"{found[key] / found['step']:.3f}", f"{found[f'{key}_floor'] / found['step']:.3f}",
                 f"{found[key] / found[f'{key}_floor']:.2f}")
                for name, key in (("a meta update", "meta"), ("the designer in every step", "designer"))
            ],
        )
    )  # fmt: skip
    found = report["judgement"]
    steps = [(kind, f"{peak / _MIB:,.0f}") for kind, peak in found["peak_bytes"].items()]
    seconds = f"A judgement takes {found['seconds']:.1f} s, {found['share']:.2%} of a long run's time.\n"
    parts += [seconds, markdown_table(("smollm2-135m: step with", "peak MiB of what it makes"), steps)]
    losses = [
        (
            row["loss"],
            f"{row['vocabulary']:,}",
            f"{row['seconds']:.3f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / _MIB:,.0f}",
        )
        for row in report["loss"]
    ]
    parts.append(markdown_table(("loss, forward and backward", "vocabulary", "seconds", "peak MiB"), losses))
    return "\n".join(parts)
