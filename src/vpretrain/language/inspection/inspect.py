"""`vpretrain inspect`: show rows of the stream, and the targets built from them."""

from __future__ import annotations

import contextlib

import torch
from rich.table import Table
from rich.text import Text

from vpretrain.console import output, working
from vpretrain.language.config import Recipe
from vpretrain.language.data.chat import remark
from vpretrain.language.inspection.steering import steering
from vpretrain.language.model.batch import AttemptBatch, TokenBatch
from vpretrain.language.model.load import load_tokenizer
from vpretrain.modality import modality_of
from vpretrain.run.left_out import lines

SHOWN = 6  # candidates per position
TARGET, CONTEXT = "bold green", "dim"


def inspect(recipe: Recipe, *, examples: int, positions: int) -> None:
    """Print rows of the stream with their loss mask, what was left out, and candidates, q, alpha and values at some positions.

    The learner and the designer are those of a run's start; candidate values come from a first feedback batch.
    """
    tokenizer = load_tokenizer(recipe.learner.name)
    parts = modality_of(recipe).assemble(recipe)
    console = output()
    batches = parts.stream.next()
    console.print(legend("Rows of the stream").append(", | between documents"))
    rows = [(batch, row) for batch in batches for row in range(len(batch.domains))][:examples]
    for number, (batch, row) in enumerate(rows):
        targets = int((batch.weights_BT[row] > 0).sum())
        console.print(Text(f"\nrow {number}, domain {batch.domains[row]}, {targets} targets"))
        console.print(marked(batch, row, tokenizer))
    if (found_by := remark([*recipe.stream.sources, *recipe.feedback.sources], tokenizer)) is not None:
        console.print(Text(f"\n{found_by}"))
    seen_by = "evaluator and stream" if recipe.arms[recipe.arm].mixed_in else "evaluator only"
    for domain, batch in parts.feedback.next().items():
        kind = "attempts" if isinstance(batch, AttemptBatch) else "pairs"
        console.print(Text(f"\nFeedback {kind}, domain {domain} ({seen_by})"))
        console.print(marked(batch, 0, tokenizer))
    for line in lines(parts.left_out(parts.stream.state_dict())):
        console.print(Text(f"\n{line}"))

    if not positions:
        return
    batch, meta = batches[0].rows([0]), parts.meta
    if meta is not None and meta.strength is not None and not meta.strength.fixed:
        console.print(
            "\nTargets below are the tilted task whole; a run takes as much of it as serves, at first nothing"
        )
    # Dry, since no learner step follows for which a meta update would make a pass ahead.
    with working("making the targets"), contextlib.nullcontext() if meta is None else meta.dry_run([batch]):
        found = steering(parts, batch)
    targets_N = batch.predicts_BT[0].nonzero()[:, 0]
    for n in torch.linspace(0, len(targets_N) - 1, min(positions, len(targets_N))).round().long().tolist():
        before = tokenizer.decode(batch.ids_BT[0, max(0, targets_N[n] - 11) : targets_N[n] + 1])
        view = Table(title=Text(f"...{before!r} -> alpha {float(found.alpha_N[n]):.3f}"), title_justify="left")
        for column in ("candidate", "p", "q", "value a"):
            view.add_column(column, justify="left" if column == "candidate" else "right")
        for k in range(min(SHOWN, found.q_NK.shape[1])):
            token = tokenizer.decode([int(found.candidates_NK[n, k])])
            view.add_row(
                Text(repr(token) + (" (true)" if k == 0 else "")),
                f"{float(found.p_NK[n, k]):.4f}",
                f"{float(found.q_NK[n, k]):.4f}",
                "-" if found.values_NK is None else f"{float(found.values_NK[n, k]):+.3g}",
            )
        console.print(view)


def legend(what: str) -> Text:
    """Say how `marked` marks targets and context."""
    before, after = _brackets()
    return Text.assemble(f"{what}: ", before, ("targets of the loss", TARGET), after, ", ", ("context", CONTEXT))


def marked(batch: TokenBatch, row: int, tokenizer: object, part: slice = slice(None)) -> Text:
    """Return a row of a batch, or a part of it, as text, with its targets and its context in their styles.

    Where colours are not seen, brackets stand around each run of targets.
    """
    text, (before, after) = Text(), _brackets()
    start = 0
    ids, weights, positions = (x_BT[row, part] for x_BT in (batch.ids_BT, batch.weights_BT, batch.positions_BT))
    for t in range(1, len(ids) + 1):
        if t < len(ids) and (weights[t] > 0) == (weights[start] > 0) and positions[t] != 0:
            continue
        words = tokenizer.decode(ids[start:t])  # type: ignore[attr-defined]
        if weights[start] > 0:
            text.append(before).append(words, style=TARGET).append(after)
        else:
            text.append(words, style=CONTEXT)
        if t < len(ids) and positions[t] == 0:
            if not (weights[t:] > 0).any():
                break
            text.append(" | ", style="yellow")
        start = t
    return text


def _brackets() -> tuple[str, str]:
    """What stands around targets: nothing where their colour is seen."""
    console = output()
    return ("", "") if console.color_system is not None and not console.no_color else ("[[", "]]")
