"""Compare the fused loss, the dense one and torch's own, forward and backward to states and head: seconds and bytes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from benchmarks.speed.peak import PeakBytes
from vpretrain.console import steady
from vpretrain.language.model.loss import CHUNK, Head, SoftTarget, dense_logits, fused_logits

SHAPES = {
    "32k": (32_000, 576),
    "49k": (49_152, 576),
    "152k": (151_936, 896),
}  # V, D: Llama 2's vocabulary, SmolLM2, Qwen2.5
TOKENS, K = 512, 64


def compare_losses(shapes: list[str], repeats: int) -> list[dict[str, Any]]:
    """Return one row per vocabulary and variant, with medians of interleaved repeats."""
    rows = []
    with steady("the loss", len(shapes) * len(VARIANTS) * (repeats + 1)) as done:
        steps = itertools.count(1)
        for shape in shapes:
            vocabulary, width = SHAPES[shape]
            torch.manual_seed(0)
            hidden_ND = torch.randn(TOKENS, width).requires_grad_()
            weight_VD = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
            targets_N = torch.randint(vocabulary, (TOKENS,))
            seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
            peaks: dict[str, int | None] = dict.fromkeys(VARIANTS)
            for turn, (name, variant) in itertools.product(range(repeats + 1), VARIANTS.items()):
                done(next(steps))
                with PeakBytes() if turn == 0 else _clock(seconds[name]) as watched:
                    gradients = torch.autograd.grad(variant(hidden_ND, weight_VD, targets_N), (hidden_ND, weight_VD))
                del gradients
                if turn == 0 and name != HIDDEN:  # this turn is also the warm-up
                    peaks[name] = watched.peak
            rows += [
                {"vocabulary": vocabulary, "width": width, "tokens": TOKENS, "loss": name,
                 "seconds": median(seconds[name]), "peak_bytes": peaks[name]}
                for name in VARIANTS
            ]  # fmt: skip
    return rows


class _clock:
    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.peak = seconds, 0

    def __enter__(self) -> _clock:
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def _shares(targets_N: Tensor) -> Tensor:
    return torch.full((len(targets_N),), 1 / len(targets_N))


def _fused(k: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits = fused_logits(hidden_ND, Head(weight_VD), targets_N, _shares(targets_N), k)
        return logits.cross_entropy(SoftTarget(logits.candidates_NK, torch.full_like(logits.z_NK, 1 / k)))

    return loss


def _dense(k: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits = dense_logits(F.linear(hidden_ND, weight_VD), targets_N, _shares(targets_N), k)
        return logits.cross_entropy(SoftTarget(logits.candidates_NK, torch.full_like(logits.z_NK, 1 / k)))

    return loss


def _torch_chunked(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    # Its default chunks, of 2 targets over the largest vocabulary, take 48 s there, so it gets ours.
    rows = min(len(targets_N), CHUNK // len(weight_VD))
    options = LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
    return F.linear_cross_entropy(hidden_ND, weight_VD, targets_N, options=options)


def _torch_dense(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N)


HIDDEN = "F.linear_cross_entropy, one-hot"  # one operation, whose internal bytes are not counted
VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused, K = 1": _fused(1),
    f"fused, K = {K}": _fused(K),
    f"dense, K = {K}": _dense(K),
    "F.cross_entropy, one-hot": _torch_dense,
    HIDDEN: _torch_chunked,
}
