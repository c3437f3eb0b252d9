"""The exact task: its closed form, its values and its tangent, each against an independent reference."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, FURTHER_FAMILIES, OTHER_SHAPES, Largest, all_logits, random_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from worlds import tiny_recipe

from vpretrain.language.assemble import assemble
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import ExactTask
from vpretrain.language.task.values import candidate_values
from vpretrain.method.strength import Strength
from vpretrain.method.subset import alignment_subset
from vpretrain.method.tilt import divergence_from, inverse_temperature

WITH_MLP = [*FAMILIES, *[f for f in FURTHER_FAMILIES if f != "mamba"], *OTHER_SHAPES]


def adapted(model, targets, *, dropout=0.1):
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=dropout))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def learner_and_direction(model, *, subset="last-mlp", top_k=8, **kwargs):
    """A learner that keeps entries, and a random u over S."""
    learner = LanguageLearner(model, top_k=top_k, **kwargs)
    names = alignment_subset(learner.module, subset)
    fast = learner.keep_entries(names)
    generator = torch.Generator().manual_seed(1)
    u = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in learner.named_parameters() if n in names
    }
    return learner, u, fast


def dense_tangent(learner, batch, u):
    """D_u of all logits of the targets, by forward mode through the whole model."""
    at = {n: p.detach() for n, p in learner.named_parameters() if n in u}
    with learner.meta_mode(), learner.without_fused_kernels(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(lambda ps: all_logits(learner.forward(batch, ps)), (at,), (u,))[1].detach()


def assert_tangents_are_dense(learner, u):
    """The candidates' tangents are those of `dense_tangent`; returns the state."""
    batch = random_batch()
    state = learner.observe(batch)
    expected = dense_tangent(learner, batch, u).gather(-1, state.logits.candidates_NK)
    torch.testing.assert_close(learner.candidate_tangents(batch, state, u), expected, rtol=1e-4, atol=1e-4)
    return state


@pytest.mark.parametrize("family", WITH_MLP)
def test_the_tangent_from_the_own_pass_is_that_of_the_whole_model(family):
    learner, u, fast = learner_and_direction(tiny_model(family).eval())
    assert fast
    batch = random_batch()
    state = learner.forward(batch).detach()
    found = learner.candidate_tangents(batch, state, u)
    expected = dense_tangent(learner, batch, u).gather(-1, state.logits.candidates_NK)
    assert float(expected.norm()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "products"), [("llama", 4 / 3), ("phi", 5 / 2)])
def test_the_tangent_multiplies_no_zeros_and_nothing_twice(family, products):
    """As many per product of the values: one of each layer's weights' tangents, and of what reaches the last layer.

    Under dropout, as in this Phi, the values are multiplied again: those of the learner's own pass are of other inputs.
    """
    learner, u, fast = learner_and_direction(tiny_model(family).eval())
    assert fast
    entry, theta = learner.forward(random_batch()).detach().entry, dict(learner.module.named_parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        learner.last_mlp.hidden(entry, theta, {})
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        learner.last_mlp.linearised(entry, theta, u)
    assert counted.get_total_flops() == pytest.approx(products * plain.get_total_flops())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", [["down_proj"], ["q_proj", "gate_proj", "up_proj"], "all-linear"])
def test_under_lora_it_is_that_of_the_adapters_in_the_mlp(targets, dropout):
    learner, u, fast = learner_and_direction(adapted(tiny_model().eval(), targets, dropout=dropout))
    assert fast
    assert all("lora" in name and ".mlp." in name for name in u)
    assert_tangents_are_dense(learner, u)


@pytest.mark.parametrize("subset", ["last-mlp", "last-1", "all"])
def test_a_head_with_an_adapter_is_in_the_tangent(subset):
    model = adapted(tiny_model("llama-untied").eval(), ["q_proj", "down_proj", "lm_head"])
    learner, u, fast = learner_and_direction(model, subset=subset)
    assert (fast, learner.module.linear_head) == (subset == "last-mlp", False)
    assert_tangents_are_dense(learner, u)


@pytest.mark.parametrize("subset", ["last-1", "last-2", "all"])
def test_a_wider_s_has_the_tangent_of_the_whole_model_too(subset):
    learner, u, fast = learner_and_direction(tiny_model("llama-untied").eval(), subset=subset)
    assert not fast
    assert assert_tangents_are_dense(learner, u).entry is None


@pytest.mark.parametrize(("family", "targets"), [("mamba", None), ("llama", ["q_proj"])])
def test_without_an_mlp_to_train_s_is_the_last_block(family, targets):
    model = tiny_model(family) if targets is None else adapted(tiny_model(family), targets)
    learner, u, fast = learner_and_direction(model)
    assert not fast
    assert set(u) == set(alignment_subset(learner.module, "last-1"))


@pytest.mark.parametrize("targets", [None, ["q_proj"]])
def test_where_s_is_not_the_last_mlp_a_line_says_so(tmp_path, tokenizer, capsys, targets):
    learner = {} if targets is None else {"learner": {"lora": {"r": 2, "target_modules": targets}}}
    assemble(tiny_recipe(tmp_path, tokenizer, **learner))
    assert ("no last MLP can be taken apart" in capsys.readouterr().err) == (targets is not None)


def test_a_block_of_another_make_is_not_taken_for_what_it_is_not():
    model = tiny_model().eval()
    block = model.model.layers[-1]

    class Deep(type(block)):
        """Adds what entered the first block, which a copy of the last one cannot know."""

        def forward(self, hidden_states, *arguments, **keywords):
            return super().forward(hidden_states, *arguments, **keywords) + getattr(self, "first", 0.0)

    block.__class__ = Deep
    model.model.layers[0].register_forward_pre_hook(lambda first, given: vars(block).update(first=given[0]))
    learner = LanguageLearner(model)
    assert not learner.keep_entries(alignment_subset(learner.module, "last-mlp"))


def test_under_activation_checkpointing_and_in_bf16_the_values_stay():
    batch = random_batch()

    def values(*, checkpointing=False, bf16=False):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        learner, u, _ = learner_and_direction(model, bf16=bf16)
        state = learner.forward(batch)
        state.logits.mean_lse.backward()  # runs the blocks once more
        return candidate_values(learner, batch, state.detach(), u), state.logits.candidates_NK

    plain, candidates = values()
    torch.testing.assert_close(values(checkpointing=True)[0], plain)
    low, candidates_too = values(bf16=True)
    same = candidates == candidates_too
    assert float((low - plain)[same].square().mean().sqrt()) < 0.05  # of an RMS of 1


def test_of_a_pass_in_fp32_a_bf16_learner_takes_the_same_values():
    """Passes at given parameters of S are in fp32, and the tangent is under autocast."""
    batch, found = random_batch(), []
    for bf16 in (False, True):
        learner, u, _ = learner_and_direction(tiny_model().eval(), bf16=bf16)
        at = {n: p.detach() for n, p in learner.named_parameters() if n in u}
        with torch.no_grad():
            state = learner.forward(batch, at).detach()
        assert state.entry is not None
        found.append(candidate_values(learner, batch, state, u))
    assert float((found[1] - found[0]).square().mean().sqrt()) < 0.05  # of an RMS of 1


def test_a_pass_that_fails_leaves_no_entry():
    model = tiny_model().eval()
    learner, *_ = learner_and_direction(model)

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = model.model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        learner.forward(random_batch())
    handle.remove()
    assert learner.take_entry() is None


def test_values_are_those_of_the_dense_definition_in_float64():
    learner, u, _ = learner_and_direction(tiny_model("qwen2-untied").double().eval(), top_k=61)
    batch = random_batch()
    state = learner.observe(batch)
    found_NK = candidate_values(learner, batch, state, u)
    dz_NV = dense_tangent(learner, batch, u)
    p_NV = all_logits(state).softmax(-1)
    a_NV = (p_NV * dz_NV).sum(-1, keepdim=True) - dz_NV  # with K = V p_C is p
    a_NV = a_NV / (batch.share_N.double() @ (p_NV * a_NV**2).sum(-1)).sqrt()
    torch.testing.assert_close(found_NK, a_NV.gather(-1, state.logits.candidates_NK), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_the_scale_of_u_has_no_effect(factor):
    learner, u, _ = learner_and_direction(tiny_model().eval())
    batch = random_batch()
    state = learner.observe(batch)
    scaled = candidate_values(learner, batch, state, {n: factor * g for n, g in u.items()})
    torch.testing.assert_close(scaled, candidate_values(learner, batch, state, u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align", ["dot", "cosine"])
def test_the_scales_of_g_down_and_of_the_metric_have_no_effect_on_the_task(tmp_path, tokenizer, monkeypatch, align):
    def target(feedback=1.0, metric=1.0):
        value = {"strength": 1.0, "align": align}
        parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v-exact", value=value))
        evaluate = parts.learner.evaluate
        parts.learner.evaluate = lambda *arguments: feedback * evaluate(*arguments)
        batches = parts.stream.next()
        generator = torch.Generator().manual_seed(0)
        P = {n: metric * (0.1 + torch.rand(p.shape, generator=generator)) for n, p in parts.meta.theta_at().items()}
        parts.meta(batches, lambda names: P)
        return parts.construction.targets(batches[0], parts.learner.observe(batches[0])).target.q_NK

    plain = target()
    assert float((1 - plain[:, 0]).mean()) > 0.005
    for scaled in (target(feedback=1e3), target(metric=1e-4)):
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-5)


def exact(values_NK, **kwargs):
    settings = {"alpha0": 0.05, "divergence": 0.1, "strength": Strength(beta=1.0)} | kwargs
    return ExactTask(values=lambda batch, state: values_NK, **settings)


def test_the_closed_form_is_the_maximum_of_its_objective():
    learner = LanguageLearner(tiny_model().double().eval(), top_k=6)
    batch = random_batch(1, 12)
    state = learner.observe(batch)
    values_NK = torch.randn(state.logits.z_NK.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = exact(values_NK).targets(batch, state)
    q_NK, temperature = task.target.q_NK, float(task.side["temperature"])
    p_NK = state.logits.log_p_NK.softmax(-1)
    q0_NK = 0.05 * p_NK
    q0_NK[:, 0] += 0.95
    free_NK = q0_NK.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([free_NK], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        log_q_NK = free_NK.log_softmax(-1)
        objective = (log_q_NK.exp() * (values_NK - temperature * (log_q_NK - q0_NK.log()))).sum()
        (-objective).backward()
        return -objective

    optimizer.step(loss)
    torch.testing.assert_close(q_NK, free_NK.detach().softmax(-1), rtol=1e-4, atol=1e-6)
    assert float((q_NK * (q_NK / q0_NK).log()).sum(-1).mean()) == pytest.approx(0.1, rel=0.03)


def test_the_divergence_from_a_base_without_other_candidates_has_a_gradient():
    log_q0_NK = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    tilt_NK = torch.randn(1, 3, requires_grad=True)
    log_q_NK = (log_q0_NK + tilt_NK).log_softmax(-1)
    divergence_N = divergence_from(log_q0_NK, log_q_NK)
    divergence_N.sum().backward()
    assert divergence_N.tolist() == [0.0]
    assert tilt_NK.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("tail", [1.0, 3.0])
def test_targets_stay_within_the_trust_region_whatever_the_tails_of_the_values(tail):
    generator = torch.Generator().manual_seed(0)
    log_q0_NK = torch.log_softmax(4 * torch.randn(60, 8, generator=generator), -1)
    normal_NK = torch.randn(60, 8, generator=generator)
    values_NK = normal_NK.sign() * normal_NK.abs() ** tail
    weights_N = torch.rand(60, generator=generator)
    for divergence in (0.02, 0.15, 0.6):
        scale = inverse_temperature(log_q0_NK, values_NK, weights_N, divergence)
        log_q_NK = torch.log_softmax(log_q0_NK + scale * values_NK, dim=-1)
        found = (weights_N * divergence_from(log_q0_NK, log_q_NK)).sum() / weights_N.sum()
        assert float(found) == pytest.approx(divergence, rel=0.08)
    # Where no tilt goes so far, as with one candidate, there is one all the same.
    assert float(inverse_temperature(log_q0_NK[:, :1] * 0, values_NK[:, :1], weights_N, 0.15)) == 8.0


def test_the_radius_multiplies_the_divergence():
    learner = LanguageLearner(tiny_model().eval(), top_k=6)
    batch = random_batch()
    state = learner.observe(batch)
    values_NK = torch.randn(state.logits.z_NK.shape, generator=torch.Generator().manual_seed(0))
    wide = exact(values_NK, strength=Strength(beta=1.0, radius=3.0))
    same = exact(values_NK, divergence=0.3, strength=Strength(beta=1.0))
    q_NK, other_NK = (construction.targets(batch, state).target.q_NK for construction in (wide, same))
    torch.testing.assert_close(q_NK, other_NK)


def test_a_share_of_the_task_is_that_share_and_nothing_is_one_hot():
    learner = LanguageLearner(tiny_model().eval(), top_k=6)
    batch = random_batch()
    state = learner.observe(batch)
    values_NK = torch.randn(state.logits.z_NK.shape, generator=torch.Generator().manual_seed(0))
    whole, half, none = (
        exact(values_NK, strength=Strength(beta=s)).targets(batch, state).target.q_NK for s in (1.0, 0.5, 0.0)
    )
    one_hot = state.logits.one_hot().q_NK
    assert torch.equal(none, one_hot)
    torch.testing.assert_close(half, (whole + one_hot) / 2)
    assert torch.equal(exact(values_NK, alpha0=0.0).targets(batch, state).target.q_NK, one_hot)
    before = ExactTask(0.05, 1.0, Strength(beta=1.0), lambda batch, state: None)
    assert torch.equal(before.targets(batch, state).target.q_NK, one_hot)


def test_v_minus_r_is_largest_at_the_exact_task_of_the_wider_s(tmp_path, tokenizer):
    value = {"strength": 0.5, "align": "dot", "feedback_every": 9}  # so that u is the same in every update
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v-learned", value=value))
    meta, learner, batches = parts.meta, parts.learner, parts.stream.next()
    meta(batches)
    batch = batches[0].restrict(**meta.part)
    state = learner.observe(batch)
    scores_NK = torch.nn.Parameter(torch.zeros_like(state.logits.z_NK))
    parts.construction.designer = lambda batch, state: (scores_NK, None)
    meta.phi, meta.optimizer = [scores_NK], torch.optim.SGD([scores_NK], lr=0.0)
    temperature = parts.construction.targets(batch, state).side["temperature"]
    wide_NK, narrow_NK = (candidate_values(learner, batch, state, u) for u in (meta.kept["sums"], meta.direction))
    slope = meta(batches)["designer_grad_norm"]
    scores_NK.data.copy_((wide_NK - narrow_NK) / temperature)
    assert meta(batches)["designer_grad_norm"] < 0.01 * slope


def test_a_step_of_the_exact_task_makes_nothing_of_the_size_of_all_logits_or_of_attention():
    learner, u, _ = learner_and_direction(tiny_model(vocabulary=997).eval(), top_k=4)
    batch = random_batch(4, 120)
    state = learner.observe(batch)
    targets, heads = len(batch.targets_N), 4
    with Largest() as fast:
        construction = ExactTask(0.02, 1.0, Strength(beta=1.0), lambda *given: candidate_values(learner, *given, u))
        construction.targets(batch, state)
    assert fast.numel < targets * 997 / 4
    assert fast.numel < 4 * heads * 120 * 120 / 4
    with Largest() as dense, torch.no_grad(), learner.without_fused_kernels():
        learner.forward(batch)
    assert dense.numel >= targets * 997


@pytest.mark.parametrize("arm", ["v", "v-learned", "selection"])
def test_without_a_tilt_a_learner_step_keeps_the_true_token_alone_as_one_hots_does(tmp_path, tokenizer, arm):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm=arm))
    batch = parts.stream.next()[0]
    kept = []
    for share in (0.0, 0.5):
        if parts.meta.strength is not None:
            parts.meta.strength.beta = share
        kept.append(parts.learner.forward(batch).logits.candidates_NK.shape[1])
    assert kept == [1, 1 if arm == "selection" else 8]  # which looks at candidates in a pass of its own
