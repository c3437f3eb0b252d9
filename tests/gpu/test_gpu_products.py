"""The loss on the device: sparse products and gathered ones against the dense formula, in fp64, fp32 and bf16."""

from __future__ import annotations

import pytest
import torch
from distributed.processes import distance
from language.test_loss import HEADS, K, N, V, dense_loss, draw, leaves, random_q
from torch.nn import functional as F

from vpretrain.language.model import loss
from vpretrain.language.model.loss import Head, SoftTarget, fused_logits, gather_dot
from vpretrain.method.products import dot

pytestmark = pytest.mark.cuda
# Of values and gradients, relative to fp64's. fp32 shows that TF32, which would be at 1e-3, stays off.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last of them not full."""
    monkeypatch.setattr(loss, "CHUNK", 7 * V)


def on(device, kind, dtype):
    """`draw` on a device, in a dtype, and its leaves in fp64."""
    hidden_ND, head, targets_N, share_N = draw(kind)
    exact = leaves(hidden_ND, head)
    own = [t.detach().to(device, dtype).requires_grad_() for t in exact]
    moved = Head(own[1], own[2] if len(own) > 2 else None, head.factor, head.cap)
    return own[0], moved, targets_N.to(device), share_N.to(device, dtype), (hidden_ND, head, exact)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("kind", HEADS)
def test_the_fused_loss_has_the_value_and_gradients_of_the_dense_one(device, kind, k, dtype):
    hidden_ND, head, targets_N, share_N, (exact_ND, exact_head, exact) = on(device, kind, dtype)
    logits = fused_logits(hidden_ND, head, targets_N, share_N, k)
    q_NK = random_q(k)
    ours = logits.cross_entropy(SoftTarget(logits.candidates_NK, q_NK.to(device, dtype)))
    theirs = dense_loss(exact_ND, exact_head, logits.candidates_NK.cpu(), q_NK, share_N.cpu().double())
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=TOLERANCES[dtype])
    found = torch.autograd.grad(ours, leaves(hidden_ND, head))
    for one, other in zip(found, torch.autograd.grad(theirs, exact), strict=True):
        assert one.device.type == device.type
        assert distance(other, one.cpu()) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gathered_products_have_the_values_and_gradients_of_the_whole(device, dtype):
    hidden_ND, head, _, _, (exact_ND, exact_head, _) = on(device, "plain", dtype)
    candidates_NK, g_NK = torch.randint(V, (N, K)), torch.randn(N, K, dtype=torch.float64)
    ours = gather_dot(hidden_ND, head.weight_VD, candidates_NK.to(device))
    theirs = (exact_ND @ exact_head.weight_VD.T).gather(1, candidates_NK)
    assert distance(theirs.detach(), ours.detach().cpu()) < TOLERANCES[dtype]
    found = torch.autograd.grad((g_NK.to(device, dtype) * ours).sum(), (hidden_ND, head.weight_VD))
    expected = torch.autograd.grad((g_NK * theirs).sum(), (exact_ND, exact_head.weight_VD))
    for one, other in zip(found, expected, strict=True):
        assert distance(other, one.cpu()) < TOLERANCES[dtype]


def test_bf16_autocast_is_near_the_exact_loss_in_value_and_gradient(device):
    hidden_ND, head, targets_N, share_N, (exact_ND, exact_head, exact) = on(device, "plain", torch.float32)
    q_NK = random_q()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = fused_logits(hidden_ND, head, targets_N, share_N, K)
    assert {t.dtype for t in (logits.z_NK, logits.lse_N, logits.mean_lse)} == {torch.float32}
    ours = logits.cross_entropy(SoftTarget(logits.candidates_NK, q_NK.float().to(device)))
    theirs = dense_loss(exact_ND, exact_head, logits.candidates_NK.cpu(), q_NK, share_N.cpu().double())
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=0.01)
    found = torch.autograd.grad(ours, leaves(hidden_ND, head))
    for one, other in zip(found, torch.autograd.grad(theirs, exact), strict=True):
        assert one.dtype == torch.float32
        assert distance(other, one.cpu()) < 0.02


def test_bf16_gradients_of_tokens_that_are_known_are_no_rounding_error(device):
    torch.manual_seed(0)
    directions_VD, targets_N = F.normalize(torch.randn(V, 64), dim=-1), torch.randint(V, (N,))
    share_N = torch.full((N,), 1 / N)
    exact = [t.double().requires_grad_() for t in (11 * directions_VD[targets_N], directions_VD)]
    theirs = (share_N * F.cross_entropy(exact[0] @ exact[1].T, targets_N, reduction="none")).sum()
    hidden_ND, weight_VD = (t.detach().float().to(device).requires_grad_() for t in exact)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = fused_logits(hidden_ND, Head(weight_VD), targets_N.to(device), share_N.to(device), K)
    found = torch.autograd.grad(logits.cross_entropy(logits.one_hot()), (hidden_ND, weight_VD))
    for one, other in zip(found, torch.autograd.grad(theirs, exact), strict=True):
        assert distance(other, one.cpu()) < 0.03


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=str)
def test_inner_products_of_gradients_are_exact_with_a_part_held_in_bf16(device, held):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2**11, 2**11 + 3, generator=generator) for _ in range(2))
    b = (a + b).to(held)
    expected = float((a.double() * b.double()).sum())
    assert float(dot(a.to(device), b.to(device))) == pytest.approx(expected, rel=1e-4)
