"""`vpretrain gate`: show which tokens a run steers: the gate alpha by kind of token, by the learner's probability of it, by the
sign of its value, and by domain. Shapes: N targets, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from vpretrain.console import steady
from vpretrain.files import write_json
from vpretrain.language.inspection.steering import Steering, at_newest_checkpoint, steering
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.load import load_tokenizer, tokens_of
from vpretrain.plot import pyplot, save_figure
from vpretrain.types import Json

KINDS = ("word", "number", "punctuation", "space", "other")
KNOWN = (0.01, 0.1, 0.5, 0.9)  # bounds of p(w_t)


def gate(run: Path, batches: int) -> Json:
    """Build tasks with the newest checkpoint of a run, on the next `batches` micro-batches of its stream.

    Returns:
        `by`: grouping -> group -> mean alpha and fraction of the targets, for groupings with several groups; written to
        gate.json as well.

    Raises:
        UserError: see `at_newest_checkpoint`.
    """
    recipe, parts, _ = at_newest_checkpoint(run)
    tokenizer = load_tokenizer(recipe.learner.name)
    kinds_V = torch.tensor([KINDS.index(kind(tokenizer.decode([token]))) for token in range(tokens_of(tokenizer))])
    sums: dict[str, dict[str, list[float]]] = {}
    seen = 0
    with steady("              gate", batches, "batches") as done:
        while seen < batches:
            for batch in parts.stream.next():
                found = steering(parts, batch)
                for grouping, group, member_N in _groups(batch, kinds_V, found):
                    entry = sums.setdefault(grouping, {}).setdefault(group, [0.0, 0.0])
                    entry[0] += float(found.alpha_N[member_N].sum())
                    entry[1] += float(member_N.sum())
                seen += 1
                done(min(seen, batches))
    total = sum(count for _, count in sums["kind of token"].values())
    by = {}
    for grouping, groups in sums.items():
        means = {group: {"alpha": alpha / n, "share": n / total} for group, (alpha, n) in groups.items() if n}
        if len(means) > 1:
            by[grouping] = means
    results = {"arm": recipe.arm, "targets": int(total), "by": by}
    write_json(run / "gate.json", results)
    return results


def kind(text: str) -> str:
    """The kind of a token, from its text without surrounding space."""
    core = text.strip()
    if not core:
        return "space"
    if any(c.isdigit() for c in core):
        return "number"
    if all(c.isalpha() or c in "'’-" for c in core) and any(c.isalpha() for c in core):
        return "word"
    return "punctuation" if not any(c.isalnum() for c in core) else "other"


def gate_table(results: Json) -> Table:
    """The results as a terminal table."""
    view = Table(title=f"{results['arm']}: gate alpha over {results['targets']:,} targets")
    for column in ("by", "group", "mean alpha", "share of targets"):
        view.add_column(column, justify="left" if column in ("by", "group") else "right")
    for grouping, groups in results["by"].items():
        for number, (group, found) in enumerate(groups.items()):
            view.add_row(grouping if number == 0 else "", group, f"{found['alpha']:.4f}", f"{found['share']:.1%}")
        view.add_section()
    return view


def draw_gate(results: Json, file: Path) -> Path:
    """Draw the results as bars."""
    count = len(results["by"])
    size = (3.4 * count, 3.4)
    figure, axes = pyplot().subplots(1, count, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, (grouping, groups) in zip(axes[0], results["by"].items(), strict=True):
        bars = axis.bar(list(groups), [found["alpha"] for found in groups.values()])
        axis.bar_label(bars, [f"{found['share']:.0%}" for found in groups.values()], fontsize=8)
        axis.set_title(grouping)
        axis.tick_params(axis="x", rotation=30)
    axes[0][0].set_ylabel("mean gate alpha")
    axes[0][0].margins(y=0.1)
    figure.suptitle(f"{results['arm']}: where V steers (percent: share of the targets)", fontsize=10)
    return save_figure(figure, file)


def _groups(batch: TokenBatch, kinds_V: Tensor, found: Steering) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (grouping, group, mask [N] of the targets in it)."""
    p_N = found.p_NK[:, 0].contiguous()
    kinds_N = kinds_V.to(p_N.device)[batch.targets_N]
    for number, name in enumerate(KINDS):
        yield "kind of token", name, kinds_N == number
    bins_N = torch.bucketize(p_N, torch.tensor(KNOWN, device=p_N.device))
    for number, (low, high) in enumerate(itertools.pairwise([0.0, *KNOWN, 1.0])):
        yield "learner's p of it", f"{low:g} to {high:g}", bins_N == number
    if found.values_NK is not None:
        values_N = found.values_NK[:, 0]
        yield "the feedback", "wants it", values_N > 0
        yield "the feedback", "opposes it", values_N <= 0
    rows_N = batch.predicts_BT.nonzero()[:, 0]
    for domain in dict.fromkeys(batch.domains):
        own_B = torch.tensor([name == domain for name in batch.domains], device=p_N.device)
        yield "domain", domain, own_B[rows_N]
