"""The targets of a language run as a report shows them: some stretches of its stream, token by token.

Shapes: T tokens per row, N targets, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from vpretrain.console import steady
from vpretrain.language.inspection.steering import at_newest_checkpoint, steering
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.load import load_tokenizer
from vpretrain.run.parts import Parts
from vpretrain.types import Json

TOKENS = 480  # shown in total, divided among the domains
CANDIDATES = 8  # per token: the true one, and those with the largest q
_STRETCH = 120  # tokens of one row
_CONTEXT = 12  # tokens before a row's first target
_STEPS = 32  # of the stream, searched for every domain


def tokens(run: Path) -> Json:
    """Build targets with the newest checkpoint of a run, on the next rows of its stream: the first of every domain.

    Returns:
        JSON-ready: `arm`, `step`, `alpha_full`, the alpha that at most one target in 20 exceeds, `alpha_highest`, and `rows`,
        each with its `domain` and its `tokens`. Every token has its `text`, and `begins` where it is the first of another
        document. A target has `alpha`; `moved`, 1 - q_t(w_t), its mass that is not on the true token; `steered`, whether it is
        among the tenth of the targets with the largest `moved`; `opposed`, whether the value of its true token is negative;
        `candidates` as [text, p, q, value], the true token first, the others by falling q; and `rest`, the mass on all other
        candidates. Before the first meta update `opposed` and every value are None.

    Raises:
        UserError: see `at_newest_checkpoint`.

    Examples:
        >>> result = run_recipe(load_recipe("recipe.yaml"), overwrite=True)
        >>> shown = tokens(result.recipe.directory)
        >>> shown["arm"]
        'v'
        >>> first = shown["rows"][0]
        >>> [(token["text"], token["moved"]) for token in first["tokens"] if "alpha" in token]
    """
    recipe, parts, step = at_newest_checkpoint(run)
    tokenizer = load_tokenizer(recipe.learner.name)

    def text(token: int) -> str:
        return tokenizer.decode([token]) or f"<{token}>"

    mixed_in = recipe.feedback.sources if recipe.arms[recipe.arm].mixed_in else ()
    pieces = list(_pieces(parts, {source.domain for source in (*recipe.stream.sources, *mixed_in)}))
    rows: list[Json] = []
    with steady("            tokens", len(pieces), "rows") as done:
        for batch, row, start, end in pieces:
            rows.append({"domain": batch.domains[row], "tokens": _tokens(parts, batch, row, start, end, text)})
            done(len(rows))
    targets = [token for row in rows for token in row["tokens"] if "alpha" in token]
    most = sorted((token["moved"] for token in targets), reverse=True)
    for token in targets:
        token["steered"] = token["moved"] > 0 and token["moved"] >= most[math.ceil(len(most) / 10) - 1]
    alphas = sorted(token["alpha"] for token in targets) or [0.0]
    scale = {"alpha_full": alphas[math.ceil(0.95 * len(alphas)) - 1], "alpha_highest": alphas[-1]}
    return {"arm": recipe.arm, "step": step, **scale, "rows": rows}


def _pieces(parts: Parts, domains: set[str]) -> Iterator[tuple[TokenBatch, int, int, int]]:
    """Yield a row of a micro-batch and its bounds: targets need the whole micro-batch, which scales values."""
    left = dict.fromkeys(domains, max(_STRETCH // 2, TOKENS // len(domains)))
    total = TOKENS
    for batch in (batch for _ in range(_STEPS) for batch in parts.stream.next()):
        for row, domain in enumerate(batch.domains):
            target_M = (batch.weights_BT[row] > 0).nonzero()[:, 0].tolist()
            start = max(0, target_M[0] - _CONTEXT)
            end = min(target_M[-1] + 1, start + min(_STRETCH, left[domain], total))
            if end > target_M[0]:
                left[domain], total = left[domain] - (end - start), total - (end - start)
                yield batch, row, start, end
        if total <= _CONTEXT or max(left.values()) <= _CONTEXT:
            return


def _tokens(parts: Parts, batch: TokenBatch, row: int, start: int, end: int, text: Callable[[int], str]) -> list[Json]:
    """Return the tokens of a row from `start` to `end`, JSON-ready."""
    ids_T, positions_T = (tensor[row, :end].tolist() for tensor in (batch.ids_BT, batch.positions_BT))
    shown: list[Json] = [{"text": text(token)} for token in ids_T]
    for number in range(1, len(shown)):
        if positions_T[number] == 0:
            shown[number]["begins"] = True
    found = steering(parts, batch)
    order_NK = found.q_NK[:, 1:].argsort(dim=1, descending=True)[:, : CANDIDATES - 1] + 1
    for n, (of, before) in enumerate(batch.predicts_BT.nonzero().tolist()):
        number = before + 1
        if of != row or number >= end:
            continue
        chosen = [0, *order_NK[n].tolist()]
        q_K = found.q_NK[n].tolist()
        values_K: list[float | None] = [None] * len(q_K) if found.values_NK is None else found.values_NK[n].tolist()
        texts, p_K = [text(token) for token in found.candidates_NK[n].tolist()], found.p_NK[n].tolist()
        true = values_K[0]
        shown[number] |= {
            "alpha": _short(float(found.alpha_N[n])),
            "moved": _short(max(0.0, 1 - q_K[0])),
            "opposed": None if true is None else true < 0,
            "candidates": [[texts[k], *map(_short, (p_K[k], q_K[k], values_K[k]))] for k in chosen],
            "rest": _short(max(0.0, 1 - sum(q_K[k] for k in chosen))),
        }
    return shown[start:]


def _short(number: float | None) -> float | None:
    """Round to four digits: enough to read, and half the size."""
    return None if number is None else float(f"{number:.4g}")
