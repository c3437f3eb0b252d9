"""Compare the fused loss, the dense one and torch's own, forward and backward to states and head: seconds and bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from benchmarks.speed.peak import in_turns
from vpretrain.console import steady
from vpretrain.language.model.loss import CHUNK, Head, SoftTarget, dense_logits, fused_logits

SHAPES = {
    "32k": (32_000, 576),
    "49k": (49_152, 576),
    "152k": (151_936, 896),
}  # V, D: Llama 2's vocabulary, SmolLM2, Qwen2.5
TOKENS, K = 512, 64
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def compare_losses(shapes: list[str], repeats: int) -> list[dict[str, Any]]:
    """Return one row per vocabulary and variant, with medians of interleaved repeats."""
    rows = []
    with steady("the loss", len(shapes) * len(VARIANTS) * (repeats + 1), "passes") as done:
        steps = itertools.count(1)
        for shape in shapes:
            vocabulary, width = SHAPES[shape]
            torch.manual_seed(0)
            hidden_ND = torch.randn(TOKENS, width).requires_grad_()
            weight_VD = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
            targets_N = torch.randint(vocabulary, (TOKENS,))
            inputs = (hidden_ND, weight_VD, targets_N)
            calls = {name: partial(_gradients, variant, *inputs) for name, variant in VARIANTS.items()}
            found = in_turns(calls, repeats, lambda: done(next(steps)))
            found[HIDDEN]["peak_bytes"] = None
            setting = {"vocabulary": vocabulary, "width": width, "tokens": TOKENS}
            rows += [setting | {"loss": name} | figures for name, figures in found.items()]
    return rows


def _gradients(loss: Loss, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(hidden_ND, weight_VD, targets_N), (hidden_ND, weight_VD))


def _shares(targets_N: Tensor) -> Tensor:
    return torch.full((len(targets_N),), 1 / len(targets_N))


def _fused(k: int) -> Loss:
    def loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits = fused_logits(hidden_ND, Head(weight_VD), targets_N, _shares(targets_N), k)
        return logits.cross_entropy(SoftTarget(logits.candidates_NK, torch.full_like(logits.z_NK, 1 / k)))

    return loss


def _dense(k: int) -> Loss:
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
VARIANTS: dict[str, Loss] = {
    "fused, K = 1": _fused(1),
    f"fused, K = {K}": _fused(K),
    f"dense, K = {K}": _dense(K),
    "F.cross_entropy, one-hot": _torch_dense,
    HIDDEN: _torch_chunked,
}
