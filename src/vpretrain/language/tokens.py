"""What a report shows of a language run's targets: some stretches of its stream, token by token.

Shapes: T tokens a row, N targets, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpretrain.language.batch import TokenBatch
from vpretrain.language.load import load_tokenizer
from vpretrain.language.steering import at_newest_checkpoint, steering
from vpretrain.parts import Parts
from vpretrain.run.progress import steady

TOKENS = 480  # shown in all, shared out over the domains
CANDIDATES = 8  # of a token: the true one, and those with the most of q
_STRETCH = 120  # tokens of one row
_CONTEXT = 12  # tokens before a row's first target
_STEPS = 32  # of the stream, in search of every domain


def tokens(run: Path) -> dict[str, Any]:
    """Targets by the newest checkpoint of a run, on rows that its stream would show next: the first of every domain.

    Args:
        run: its directory.

    Returns:
        JSON-ready: `arm`, `step`, `alpha_max`, and `rows`, each with its `domain` and its `tokens`. Every token has its `text`,
        and `begins` where it is the first of another document. A target has `alpha`; `moved`, 1 - q_t(w_t), the share of its
        mass that is not on the true token; `steered`, whether it is among the tenth of the targets with the most of that;
        `opposed`, whether the value of its true token is negative; `candidates` as [text, p, q, value], the true token first,
        the others by falling q; and `rest`, the mass on all further ones. Before the first meta update `opposed` and every
        value are None.

    Raises:
        UserError: see `at_newest_checkpoint`.
    """
    recipe, parts, step = at_newest_checkpoint(run)
    tokenizer = load_tokenizer(recipe.learner.name)

    def text(token: int) -> str:
        return tokenizer.decode([token]) or f"<{token}>"

    pieces = list(_pieces(parts, {source.domain for source in recipe.stream.sources}))
    rows: list[dict[str, Any]] = []
    with steady("            tokens", len(pieces)) as done:
        for piece, start in pieces:
            rows.append({"domain": piece.domains[0], "tokens": _tokens(parts, piece, text)[start:]})
            done(len(rows))
    targets = [token for row in rows for token in row["tokens"] if "alpha" in token]
    most = sorted((token["moved"] for token in targets), reverse=True)
    for token in targets:
        token["steered"] = token["moved"] > 0 and token["moved"] >= most[math.ceil(len(most) / 10) - 1]
    return {"arm": recipe.arm, "step": step, "alpha_max": recipe.designer.alpha_max, "rows": rows}


def _pieces(parts: Parts, domains: set[str]) -> Iterator[tuple[TokenBatch, int]]:
    """One row each, up to the last token that is shown of it; and the number of the first one."""
    left = dict.fromkeys(domains, max(_STRETCH // 2, TOKENS // len(domains)))
    total = TOKENS
    for batch in (batch for _ in range(_STEPS) for batch in parts.stream.next()):
        for row, domain in enumerate(batch.domains):
            target_M = (batch.weights_BT[row] > 0).nonzero()[:, 0].tolist()
            start = max(0, target_M[0] - _CONTEXT)
            end = min(target_M[-1] + 1, start + min(_STRETCH, left[domain], total))
            if end > target_M[0]:
                left[domain], total = left[domain] - (end - start), total - (end - start)
                yield batch.rows([row], end), start
        if total <= _CONTEXT or max(left.values()) <= _CONTEXT:
            return


def _tokens(parts: Parts, piece: TokenBatch, text: Callable[[int], str]) -> list[dict[str, Any]]:
    """Of a row."""
    (ids_T,), (positions_T,), (weights_T,) = (
        tensor.tolist() for tensor in (piece.ids_BT, piece.positions_BT, piece.weights_BT)
    )
    shown: list[dict[str, Any]] = [{"text": text(token)} for token in ids_T]
    for number in range(1, len(shown)):
        if positions_T[number] == 0:
            shown[number]["begins"] = True
    found = steering(parts, piece)
    order_NK = found.q_NK[:, 1:].argsort(dim=1, descending=True)[:, : CANDIDATES - 1] + 1
    for n, number in enumerate(t for t, weight in enumerate(weights_T) if t and weight > 0):
        chosen = [0, *order_NK[n].tolist()]
        q_K = found.q_NK[n].tolist()
        values_K: list[float | None] = [None] * len(q_K)
        if found.values_NK is not None:
            values_K = found.values_NK[n].tolist()
        texts, p_K = [text(token) for token in found.candidates_NK[n].tolist()], found.p_NK[n].tolist()
        true = values_K[0]
        shown[number] |= {
            "alpha": _short(float(found.alpha_N[n])),
            "moved": _short(max(0.0, 1 - q_K[0])),
            "opposed": None if true is None else true < 0,
            "candidates": [[texts[k], *map(_short, (p_K[k], q_K[k], values_K[k]))] for k in chosen],
            "rest": _short(max(0.0, 1 - sum(q_K[k] for k in chosen))),
        }
    return shown


def _short(number: float | None) -> float | None:
    """To four digits: enough to read, and half the size."""
    return None if number is None else float(f"{number:.4g}")
