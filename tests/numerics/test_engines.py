"""The value engines against each other, and the oracle against finite differences over phi."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import FAMILIES, VOCABULARY, random_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vpretrain.inspection.doctor import designer_gradient, relative_errors
from vpretrain.language.config import DesignerConfig
from vpretrain.language.inspection.doctor import PARTS, random_designer
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import LearnedTargets
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import ENGINES, Align, MetaProblem, gradient

DESIGNER = DesignerConfig(hidden_size=32, layers=2, heads=2, top_k=12)


def setting(family: str = "llama", subset: str = "last-2", *, dtype: torch.dtype = torch.float32, adamw: bool = False):
    """A learner, a construction, a stream batch, theta_S, g_down and a metric."""
    model = tiny_model(family)
    if subset.startswith("lora"):
        torch.manual_seed(3)
        targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
        targets += ["lm_head"] if subset == "lora-head" else []
        model = get_peft_model(
            model,
            LoraConfig(r=4, lora_alpha=16, target_modules=targets, lora_dropout=0.1, fan_in_fan_out=family == "gpt2"),
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        subset = "last-2"
    learner = LanguageLearner(model.to(dtype), top_k=DESIGNER.top_k)
    construction = LearnedTargets(random_designer(learner, DESIGNER).to(dtype))
    names = alignment_subset(learner.module, subset)
    at = {name: p.detach() for name, p in learner.named_parameters() if name in names}
    with learner.meta_mode():
        g_down = gradient(lambda parameters: learner.evaluate(random_batch(2, seed=9), parameters), at)
    generator = torch.Generator().manual_seed(5)
    metric = {n: 0.1 + torch.rand(p.shape, generator=generator, dtype=dtype) for n, p in at.items()} if adamw else None
    return learner, construction, at, g_down, metric


def alignment(kind: str, metric) -> Align:
    return Align("dot", metric, penalty=0.7) if kind == "penalised" else Align(kind, metric)


def gradient_by(engine: str, kind: str, learner, construction, at, g_down, metric, **options):
    """Gradient of V by the designer's parameters, whole and by part, and V."""
    with learner.meta_mode():
        problem = MetaProblem(learner, construction, random_batch(), at, g_down, alignment(kind, metric))
        valued = partial(ENGINES[engine], **options)(problem)
        return designer_gradient(valued, construction.designer, PARTS), float(valued.value)


def central_difference(value, parameters, direction, h):
    """Of a value along a direction of its parameters."""

    def moved(h):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=h)
        found = value()
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=h)
        return found

    return (moved(h) - moved(-h)) / (2 * h)


def assert_jvp_equals_oracle(kind, *parts, tolerance=1e-5):
    """Gradient and value; returns the oracle's gradient."""
    ours, value = gradient_by("jvp", kind, *parts)
    oracle, oracle_value = gradient_by("double_backward", kind, *parts)
    errors = relative_errors(ours, oracle)
    assert max(errors.values()) <= tolerance, errors
    assert value == pytest.approx(oracle_value, rel=1e-4, abs=1e-6)
    return oracle


@pytest.mark.parametrize("metric", ["identity", "adamw"])
@pytest.mark.parametrize("kind", ["dot", "cosine", "penalised"])
@pytest.mark.parametrize("subset", ["last-1", "last-2", "all", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_jvp_equals_double_backward(family, subset, kind, metric):
    oracle = assert_jvp_equals_oracle(kind, *setting(family, subset, adamw=metric == "adamw"))
    assert all(g.norm() > 0 for g in oracle.values())


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_a_head_with_an_adapter_has_its_dense_slope(kind):
    parts = setting("llama-untied", "lora-head")
    assert not parts[0].module.linear_head
    assert_jvp_equals_oracle(kind, *parts)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("family", ["llama", "llama-untied"])
def test_an_s_outside_the_blocks_has_the_slope_and_value_of_double_backward(family, kind):
    assert_jvp_equals_oracle(kind, *setting(family, "name:embed"), tolerance=1e-4)


@pytest.mark.parametrize("kind", ["dot", "cosine", "penalised"])
@pytest.mark.parametrize("subset", ["last-2", "all", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_difference_is_close_at_its_swept_step(family, subset, kind):
    parts = setting(family, subset)
    oracle, _ = gradient_by("double_backward", kind, *parts)
    errors = [
        max(relative_errors(gradient_by("finite_difference", kind, *parts, relative_step=rho)[0], oracle).values())
        for rho in (1e-4, 3e-4, 1e-3)
    ]
    assert min(errors) <= 1e-3, errors


@pytest.mark.parametrize("metric", ["identity", "adamw"])
@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("subset", ["last-2", "all"])
def test_oracle_equals_finite_differences_over_phi(subset, kind, metric, monkeypatch):
    # transformers' norm rounds to fp32 inside, which would drown the differences.
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda norm, x: F.rms_norm(x, x.shape[-1:], norm.weight, 1e-6))
    learner, construction, at, g_down, P = setting("llama", subset, dtype=torch.float64, adamw=metric == "adamw")
    gradients, _ = gradient_by("double_backward", kind, learner, construction, at, g_down, P)
    phi = list(construction.designer.parameters())
    direction = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype) for i, p in enumerate(phi)
    ]
    predicted = float(gradients["all"] @ torch.cat([d.flatten() for d in direction]))
    measured = central_difference(
        lambda: gradient_by("double_backward", kind, learner, construction, at, g_down, P)[1], phi, direction, h=1e-6
    )
    assert predicted == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("adamw", [False, True])
def test_the_penalised_direction_is_the_one_derived_by_hand(adamw):
    generator = torch.Generator().manual_seed(0)
    g_down, g_pre = ({n: torch.randn(5, generator=generator, dtype=torch.float64) for n in "ab"} for _ in range(2))
    P = {n: 0.1 + torch.rand(5, generator=generator, dtype=torch.float64) for n in "ab"} if adamw else None
    c, weight = 0.7, P or {n: torch.ones(5, dtype=torch.float64) for n in "ab"}
    down, pre = (sum(float((weight[n] * g[n] ** 2).sum()) for n in "ab") ** 0.5 for g in (g_down, g_pre))
    align = Align("dot", P, penalty=c)
    assert not align.linear
    u = align.direction(g_down, g_pre)
    for n in "ab":  # P g_down - c |g_down|_P / |g_pre|_P P g_pre: the norm in the denominator is constant
        torch.testing.assert_close(u[n], weight[n] * (g_down[n] - c * down / pre * g_pre[n]))
    product = sum(float((weight[n] * g_down[n] * g_pre[n]).sum()) for n in "ab")
    assert float(align(g_down, g_pre)) == pytest.approx(product - c / 2 * down * pre)
    # Doubling both gradients changes nothing but the unit: c has no scale.
    twice = [{n: 2 * g[n] for n in "ab"} for g in (g_down, g_pre)]
    assert float(align(*twice)) == pytest.approx(4 * float(align(g_down, g_pre)))


def test_a_lost_tangent_is_told_but_not_where_a_process_has_no_part_in_the_batch(monkeypatch):
    learner, construction, at, g_down, _ = setting()
    with learner.meta_mode():
        problem = MetaProblem(learner, construction, random_batch(), at, g_down, Align("dot"))
        valued = ENGINES["jvp"](replace(problem, rank_weight=0.0))
        assert float(valued.value) == float(valued.surrogate.detach()) == 0
        monkeypatch.setattr(
            learner, "directional_derivative", lambda *args, **kwargs: lambda task: torch.zeros((), requires_grad=True)
        )
        with pytest.raises(RuntimeError, match="the tangent was lost"):
            ENGINES["jvp"](problem)


def test_alpha_of_the_randomised_designer_lies_where_it_is_meant_to():
    learner, construction, *_ = setting()
    batch = random_batch()
    alpha_N = construction.targets(batch, learner.forward(batch).detach()).side["alpha_N"].detach()
    assert float(alpha_N.min()) >= 0.1
    assert float(alpha_N.max()) <= 0.4
    assert float(alpha_N.std()) > 1e-3
    assert learner.model.config.vocab_size == VOCABULARY
