"""The fused soft cross-entropy against the dense formula, and its pieces against theirs."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, Largest, random_batch, tiny_model
from torch.nn import functional as F

from vpretrain.language.model import loss
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.loss import (
    Head,
    SoftTarget,
    Tangent,
    dense_logits,
    fused_logits,
    gather_dot,
    top_ids,
)
from vpretrain.method.protocols import Task

N, V, D, K = 23, 61, 8, 5
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "factor": {"factor": 0.3},
    "cap": {"cap": 2.0, "factor": 1.5, "bias": True},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last of them not full."""
    monkeypatch.setattr(loss, "CHUNK", 7 * V)


def draw(kind="plain", dtype=torch.float64):
    """Leaves (hidden states, head), targets and shares."""
    torch.manual_seed(0)
    options = dict(HEADS[kind])
    hidden_ND, weight_VD = torch.randn(N, D, dtype=dtype), torch.randn(V, D, dtype=dtype)
    bias_V = torch.randn(V, dtype=dtype).requires_grad_() if options.pop("bias", False) else None
    share_N = torch.rand(N, dtype=torch.float64).softmax(-1).to(dtype)
    head = Head(weight_VD.requires_grad_(), bias_V, **options)
    return hidden_ND.requires_grad_(), head, torch.randint(V, (N,)), share_N


def random_q(k=K, dtype=torch.float64):
    return torch.randn(N, k, dtype=dtype).softmax(-1)


def dense_loss(hidden_ND, head, candidates_NK, q_NK, share_N):
    """The formula as it is written, over the whole vocabulary."""
    logits_NV = F.linear(hidden_ND, head.weight_VD, head.bias_V) * head.factor
    if head.cap is not None:
        logits_NV = head.cap * torch.tanh(logits_NV / head.cap)
    q_NV = torch.zeros_like(logits_NV).scatter(1, candidates_NK, q_NK)
    return (share_N * F.cross_entropy(logits_NV, q_NV, reduction="none")).sum()


def leaves(hidden_ND, head):
    return [t for t in (hidden_ND, head.weight_VD, head.bias_V) if t is not None]


@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("kind", HEADS)
def test_it_equals_the_dense_formula_in_value_and_gradient(kind, k):
    hidden_ND, head, targets_N, share_N = draw(kind)
    logits = fused_logits(hidden_ND, head, targets_N, share_N, k)
    target = SoftTarget(logits.candidates_NK, random_q(k))
    ours = 0.7 * logits.cross_entropy(target)  # a micro-batch's share of a step
    theirs = 0.7 * dense_loss(hidden_ND, head, target.candidates_NK, target.q_NK, share_N)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(value, leaves(hidden_ND, head)) for value in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", HEADS)
def test_what_it_keeps_is_what_dense_logits_have(kind):
    hidden_ND, head, targets_N, share_N = draw(kind)
    fused = fused_logits(hidden_ND, head, targets_N, share_N, K)
    dense = dense_logits(head.bend(F.linear(hidden_ND, head.weight_VD, head.bias_V)), targets_N, share_N, K)
    assert torch.equal(fused.candidates_NK, dense.candidates_NK)
    assert torch.equal(fused.candidates_NK[:, 0], targets_N)
    others_NK = torch.randint(V, (N, 3))
    for one, other in (
        (fused.z_NK, dense.z_NK),
        (fused.lse_N, dense.lse_N),
        (fused.mean_lse, dense.mean_lse),
        (fused.candidate_logits(others_NK), dense.candidate_logits(others_NK)),
    ):
        torch.testing.assert_close(one, other)
    found, expected = (
        torch.autograd.grad(logits.candidate_logits(others_NK).square().sum(), leaves(hidden_ND, head))
        for logits in (fused, dense)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("kind", ["plain", "bias"])
def test_rows_that_are_no_tokens_are_never_candidates(kind, k):
    """Though their logits are the largest, so large that exp would overflow; p is over all rows."""
    hidden_ND, head, _, share_N = draw(kind)
    tokens = V - 10
    targets_N = torch.randint(tokens, (N,))
    with torch.no_grad():
        head.weight_VD[tokens:] *= 1e3
    dense_NV = F.linear(hidden_ND, head.weight_VD, head.bias_V)
    fused = fused_logits(hidden_ND, head, targets_N, share_N, k, tokens)
    dense = dense_logits(dense_NV, targets_N, share_N, k, tokens)
    assert int(fused_logits(hidden_ND, head, targets_N, share_N, K).candidates_NK.max()) >= tokens
    assert int(fused.candidates_NK.max()) < tokens
    assert torch.equal(fused.candidates_NK, dense.candidates_NK)
    torch.testing.assert_close(fused.lse_N, dense_NV.logsumexp(-1))
    target = SoftTarget(fused.candidates_NK, random_q(k))
    ours = fused.cross_entropy(target)
    theirs = dense_loss(hidden_ND, head, target.candidates_NK, target.q_NK, share_N)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(value, leaves(hidden_ND, head)) for value in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_fp32_gradients_are_within_a_millionth_of_the_dense_ones():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)
    logits = fused_logits(hidden_ND, head, targets_N, share_N, K)
    q_NK = random_q(dtype=torch.float32)
    found = torch.autograd.grad(logits.cross_entropy(SoftTarget(logits.candidates_NK, q_NK)), leaves(hidden_ND, head))
    exact = [t.detach().double().requires_grad_() for t in leaves(hidden_ND, head)]
    theirs = dense_loss(exact[0], Head(exact[1]), logits.candidates_NK, q_NK.double(), share_N.double())
    for one, other in zip(found, torch.autograd.grad(theirs, exact), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-6


def test_what_the_rows_of_a_head_have_in_common_leaves_no_trace(monkeypatch):
    """p and q both sum to 1, so that p - q knows nothing of it, however long it is."""
    monkeypatch.setattr(loss, "CHUNK", 2**26)
    torch.manual_seed(0)
    n, v, d, k = 16, 49_152, 32, 8
    hidden_ND, weight_VD = torch.randn(n, d).requires_grad_(), 3 + torch.randn(v, d)
    targets_N, share_N, q_NK = torch.randint(v, (n,)), torch.full((n,), 1 / n), torch.full((n, k), 1 / k)
    logits = fused_logits(hidden_ND, Head(weight_VD), targets_N, share_N, k)
    (found,) = torch.autograd.grad(logits.cross_entropy(SoftTarget(logits.candidates_NK, q_NK)), hidden_ND)
    exact = hidden_ND.detach().double().requires_grad_()
    theirs = dense_loss(exact, Head(weight_VD.double()), logits.candidates_NK, q_NK.double(), share_N.double())
    (expected,) = torch.autograd.grad(theirs, exact)
    assert float((found - expected).norm() / expected.norm()) < 8e-6


def test_all_mass_on_the_true_token_is_the_usual_loss_whatever_k_is():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)
    one, many = (fused_logits(hidden_ND, head, targets_N, share_N, k) for k in (1, K))
    values = [logits.cross_entropy(logits.one_hot()) for logits in (one, many)]
    assert torch.equal(*values)
    usual_N = F.cross_entropy(hidden_ND @ head.weight_VD.T, targets_N, reduction="none")
    torch.testing.assert_close(values[0], (share_N * usual_N).sum())
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(torch.autograd.grad(v, leaves(hidden_ND, head)) for v in values), strict=True)
    )


def test_logits_of_any_size_are_no_trouble():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)
    large = Head(1e4 * head.weight_VD.detach())
    logits = fused_logits(hidden_ND, large, targets_N, share_N, 1)
    exact_NV = hidden_ND.double() @ large.weight_VD.double().T
    torch.testing.assert_close(logits.lse_N.double(), exact_NV.logsumexp(-1), rtol=1e-6, atol=0)


def test_parameters_without_gradient_cost_none(monkeypatch):
    hidden_ND, head, targets_N, share_N = draw()
    monkeypatch.setattr(loss, "_add_product", lambda *arguments: pytest.fail("the head is frozen"))
    frozen = Head(head.weight_VD.detach())
    logits = fused_logits(hidden_ND, frozen, targets_N, share_N, K)
    logits.cross_entropy(logits.one_hot()).backward()
    assert hidden_ND.grad is not None
    with torch.no_grad():
        assert not fused_logits(hidden_ND, head, targets_N, share_N, K).mean_lse.requires_grad


def test_a_second_backward_pass_is_refused():
    hidden_ND, head, targets_N, share_N = draw()
    value = fused_logits(hidden_ND, head, targets_N, share_N, K).mean_lse
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        value.backward()


def test_no_tensor_over_all_targets_and_the_vocabulary_is_ever_made():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)
    with Largest() as fused:
        logits = fused_logits(hidden_ND, head, targets_N, share_N, K)
        logits.cross_entropy(SoftTarget(logits.candidates_NK, random_q(dtype=torch.float32))).backward()
    assert fused.numel <= max(7 * V, V * D)
    with Largest() as dense:
        dense_logits(hidden_ND @ head.weight_VD.T, targets_N, share_N, K)
    assert dense.numel >= N * V


def test_candidates_are_the_true_token_and_the_best_others():
    z_NV = torch.tensor([[0.0, 4.0, 3.0, 2.0], [0.0, 4.0, 3.0, 2.0]])
    logits = dense_logits(z_NV, torch.tensor([2, 0]), torch.tensor([0.5, 0.5]), 3)
    assert logits.candidates_NK.tolist() == [[2, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("vocabulary", [61, 64 * 4, 64 * 4 + 7, 1000])
def test_the_best_ids_are_those_of_topk(vocabulary):
    z_NV = torch.randn(N, vocabulary, generator=torch.Generator().manual_seed(0))
    z_NV[0] = torch.arange(vocabulary)  # the largest are in the rest that fills no group
    z_NV[1] = z_NV[0].flip(0)
    assert torch.equal(top_ids(z_NV, 4), z_NV.topk(4, dim=-1).indices)


def test_gather_dot_has_the_products_and_gradients_of_the_whole():
    hidden_ND, head, *_ = draw()
    candidates_NK = torch.randint(V, (N, K))
    g_NK = torch.randn(N, K, dtype=torch.float64)
    ours = gather_dot(hidden_ND, head.weight_VD, candidates_NK)
    theirs = (hidden_ND @ head.weight_VD.T).gather(1, candidates_NK)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad((g_NK * p).sum(), (hidden_ND, head.weight_VD)) for p in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", HEADS)
def test_tangents_are_those_of_forward_mode(kind):
    hidden_ND, head, targets_N, share_N = draw(kind)
    at = [t.detach() for t in leaves(hidden_ND, head)]
    along = [torch.randn_like(t) for t in at]
    candidates_NK = torch.randint(V, (N, K))

    def dense(hidden_ND, weight_VD, bias_V=None):
        raw_NV = F.linear(hidden_ND, weight_VD, bias_V)
        logits = dense_logits(head.bend(raw_NV), targets_N, share_N, K)
        return logits.mean_lse, logits.candidate_logits(candidates_NK)

    _, (mean_lse, z_NK) = torch.func.jvp(dense, tuple(at), tuple(along))
    tangent = Tangent(along[0], along[1], along[2] if len(along) > 2 else None)
    torch.testing.assert_close(head.tangent_of_mean_lse(at[0], tangent, targets_N, share_N), mean_lse)
    torch.testing.assert_close(head.candidate_tangents_at(at[0], tangent, candidates_NK), z_NK)


def test_bf16_autocast_is_reduced_in_fp32():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)
    q_NK = random_q(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fused_logits(hidden_ND, head, targets_N, share_N, K)
        rounded_NV = F.linear(hidden_ND, head.weight_VD)
    assert rounded_NV.dtype == torch.bfloat16
    assert {t.dtype for t in (logits.z_NK, logits.lse_N, logits.mean_lse)} == {torch.float32}
    torch.testing.assert_close(logits.lse_N, rounded_NV.float().logsumexp(-1))
    torch.testing.assert_close(logits.z_NK, rounded_NV.float().gather(1, logits.candidates_NK))
    found = torch.autograd.grad(logits.cross_entropy(SoftTarget(logits.candidates_NK, q_NK)), leaves(hidden_ND, head))
    exact = torch.autograd.grad(
        dense_loss(hidden_ND, head, logits.candidates_NK, q_NK, share_N), leaves(hidden_ND, head)
    )
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_bf16_gradients_of_tokens_that_are_known_are_no_rounding_error():
    torch.manual_seed(0)
    directions_VD = F.normalize(torch.randn(V, 64), dim=-1)
    targets_N = torch.randint(V, (N,))
    share_N = torch.full((N,), 1 / N)
    hidden_ND = (11 * directions_VD[targets_N]).requires_grad_()
    weight_VD = directions_VD.clone().requires_grad_()
    exact = torch.autograd.grad(
        (share_N * F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none")).sum(), (hidden_ND, weight_VD)
    )
    p_NV = (hidden_ND @ weight_VD.T).detach().softmax(-1)
    assert 0.98 < float(p_NV.gather(1, targets_N[:, None]).mean()) < 0.9999
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fused_logits(hidden_ND, Head(weight_VD), targets_N, share_N, K)
    found = torch.autograd.grad(logits.cross_entropy(logits.one_hot()), (hidden_ND, weight_VD))
    for one, other in zip(found, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.03


@pytest.mark.filterwarnings("ignore")  # compiling looks at more than it should
def test_under_compile_it_is_the_same():
    hidden_ND, head, targets_N, share_N = draw(dtype=torch.float32)

    def value(hidden_ND):
        logits = fused_logits(torch.tanh(hidden_ND), head, targets_N, share_N, K)
        return 2 * logits.mean_lse - logits.z_NK.square().mean()

    eager, compiled = (
        torch.autograd.grad(f(hidden_ND), leaves(hidden_ND, head))
        for f in (value, torch.compile(value, backend="aot_eager"))
    )
    torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learners_plain_loss_is_its_fused_one_in_value_and_gradient(family):
    learner = LanguageLearner(tiny_model(family).eval(), top_k=K)
    batch = random_batch()
    names, parameters = zip(*learner.named_parameters(), strict=True)
    found = []
    for context in (learner.without_fused_kernels, learner.meta_mode):
        with context():
            state = learner.forward(batch)
            q_NK = torch.randn(state.logits.z_NK.shape, generator=torch.Generator().manual_seed(1)).softmax(-1)
            value = learner.loss(state, Task(batch, SoftTarget(state.logits.candidates_NK, q_NK)))
            found.append((value, torch.autograd.grad(value, parameters)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, plain, fused in zip(names, found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6, msg=name)
