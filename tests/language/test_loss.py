"""The soft cross-entropy against the dense formula."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vpretrain.language.designer import candidates
from vpretrain.language.loss import SoftTarget, soft_cross_entropy


def test_it_equals_the_dense_formula_in_value_and_gradient():
    torch.manual_seed(0)
    logits_NV = torch.randn(7, 19, dtype=torch.float64, requires_grad=True)
    q_NK = torch.rand(7, 5, dtype=torch.float64).softmax(-1)
    candidates_NK = torch.stack([torch.randperm(19)[:5] for _ in range(7)])
    dense_NV = torch.zeros(7, 19, dtype=torch.float64).scatter(1, candidates_NK, q_NK)
    ours = soft_cross_entropy(logits_NV, SoftTarget(candidates_NK, q_NK))
    theirs = F.cross_entropy(logits_NV, dense_NV, reduction="none")
    torch.testing.assert_close(ours, theirs)
    weights_N = torch.rand(7, dtype=torch.float64)
    (ours_gradient,) = torch.autograd.grad((weights_N * ours).sum(), logits_NV, retain_graph=True)
    torch.testing.assert_close(ours_gradient, weights_N[:, None] * (logits_NV.softmax(-1) - dense_NV).detach())


def test_one_hot_is_the_usual_loss_whatever_k_is():
    torch.manual_seed(0)
    logits_NV, targets_N = torch.randn(7, 19), torch.randint(19, (7,))
    one = soft_cross_entropy(logits_NV, SoftTarget(targets_N[:, None], torch.ones(7, 1)))
    torch.testing.assert_close(one, F.cross_entropy(logits_NV, targets_N, reduction="none"))
    many_NK = candidates(logits_NV, targets_N, 8)
    q_NK = torch.zeros(7, 8)
    q_NK[:, 0] = 1
    assert torch.equal(soft_cross_entropy(logits_NV, SoftTarget(many_NK, q_NK)), one)


def test_bf16_logits_are_reduced_in_fp32():
    logits_NV = torch.randn(4, 500).bfloat16()
    targets_N = torch.randint(500, (4,))
    ours = soft_cross_entropy(logits_NV, SoftTarget(targets_N[:, None], torch.ones(4, 1)))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.cross_entropy(logits_NV.float(), targets_N, reduction="none"))
