"""What must hold whichever way a run is set: equal batches, the firewall, alpha = 0, accumulation, detached tasks."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace

import pytest
import torch
from models import all_logits, random_batch, tiny_model
from sessions import apart, assert_bit_equal, session_of, start_of, trajectory
from worlds import sums, tiny_recipe, write_jsonl

from vpretrain.language.assemble import assemble
from vpretrain.language.config import DesignerConfig
from vpretrain.language.data.stream import HELD_BACK
from vpretrain.language.inspection.doctor import random_designer
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import LearnedTargets, OneHot, Smoothing
from vpretrain.run.optimizer import AdamW


@pytest.fixture(params=["llama", "gpt2"])
def family(request):
    return request.param


@pytest.fixture
def half_right(monkeypatch):
    """Rewards about half of all attempts: the tiny learner, whose weights are random, never solves a problem."""
    monkeypatch.setattr("vpretrain.language.verified.solves", lambda text, example: sum(map(ord, text)) % 2 == 0)


def test_alpha_zero_is_one_hot_bit_for_bit(tmp_path, tokenizer, family):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, family, arm="one-hot"))
    v, _, parts = trajectory(tiny_recipe(tmp_path, tokenizer, family, arm="v-paper", designer={"alpha_max": 0.0}))
    assert parts.meta.updates == 3
    assert_bit_equal(one_hot, v)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_a_tilt_the_exact_task_is_one_hot_bit_for_bit(tmp_path, tokenizer, family, strength):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, family, arm="one-hot"))
    none = {"strength": strength, **({"alpha0": 0.0} if strength else {})}
    v, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, family, arm="v-exact", value=none))
    assert_bit_equal(one_hot, v)


@pytest.mark.parametrize("arm", ["v-paper", "v-exact"])
def test_one_candidate_is_one_hot_bit_for_bit(tmp_path, tokenizer, arm):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    changes = {"designer": {"top_k": 1}, "value": {"strength": 1.0}}
    v, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, arm=arm, **changes))
    assert_bit_equal(one_hot, v)


def test_burn_in_is_one_hot_and_then_no_longer(tmp_path, tokenizer):
    one_hot, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    kwargs = {"value": {"every_steps": 1, "strength": 1.0}}
    burning, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, designer={"burn_in_steps": 6}, **kwargs))
    assert_bit_equal(one_hot, burning)
    burnt, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, designer={"burn_in_steps": 4}, **kwargs))
    assert any(not torch.equal(one_hot[name], burnt[name]) for name in one_hot)


@pytest.mark.filterwarnings("ignore")  # compiling looks at more than it should
@pytest.mark.parametrize("arm", ["v-paper", "v-exact"])
def test_a_compiled_learner_takes_the_same_course(tmp_path, tokenizer, monkeypatch, arm):
    kwargs = {"arm": arm, "value": {"strength": 1.0}}
    plain, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, **kwargs))
    traced = functools.partial(torch.compile, backend="aot_eager")  # all but the C++ compiler
    monkeypatch.setattr(torch, "compile", traced)
    compiled, *_ = trajectory(tiny_recipe(tmp_path, tokenizer, learner={"compile": True}, **kwargs))
    for name, theta in plain.items():
        torch.testing.assert_close(compiled[name], theta, rtol=1e-3, atol=1e-5)


def test_lora_arms_share_dropout_and_batches(tmp_path, tokenizer):
    lora = {"learner": {"lora": {"r": 2, "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}}}
    one_hot, seen_one_hot, _ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="one-hot", **lora))
    v, seen_v, _ = trajectory(tiny_recipe(tmp_path, tokenizer, arm="v-paper", designer={"alpha_max": 0.0}, **lora))
    assert_bit_equal(one_hot, v)
    for ours, theirs in zip(seen_one_hot, seen_v, strict=False):
        assert all(torch.equal(a.ids_BT, b.ids_BT) for a, b in zip(ours, theirs, strict=True))


AS_FAR = {
    "uniform": 0.26, "self-distillation": 0.30, "random-feedback": 0.09, "v": 0.09, "v-exact": 0.09, "v-learned": 0.09,
    "v-paper": 0.10, "selection": 0.29, "token-weights": 0.15,
}  # fmt: skip


@pytest.mark.parametrize("arm", AS_FAR)
def test_every_arm_sees_the_batches_of_one_hot_and_ends_elsewhere(tmp_path, tokenizer, arm):
    """As far from one-hot's end, relative to the way that one-hot has gone, as it was when this was written."""
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")
    one_hot, seen_one_hot, _ = trajectory(recipe)
    other, seen, _ = trajectory(tiny_recipe(tmp_path, tokenizer, arm=arm, value={"strength": 1.0}))
    for ours, theirs in zip(seen, seen_one_hot, strict=True):
        assert all(torch.equal(a.ids_BT, b.ids_BT) for a, b in zip(ours, theirs, strict=True))
    assert apart(one_hot, other, start_of(recipe)) == pytest.approx(AS_FAR[arm], rel=0.3)


@pytest.fixture
def poisoned(tmp_path, tokenizer):
    """Makes a recipe whose feedback has wrong answers, or the right ones; both in directories of their own."""

    def make(poison: bool, **changes):
        root = tmp_path / ("poisoned" if poison else "clean")
        root.mkdir(exist_ok=True)
        recipe = tiny_recipe(root, tokenizer, **changes)  # writes the right ones
        if poison:
            rows = [{"question": f"2: {i} + 0 ?", "answer": "zzz #### 7"} for i in range(12)]
            write_jsonl(root / "feedback.jsonl", rows)
        return recipe

    return make


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("v-paper", {"designer": {"lr": 1e-30}}),  # too small to change an fp32 weight
        ("v-exact", {"value": {"strength": 0.0}}),
        ("v-learned", {"value": {"strength": 0.0}}),
    ],
)
def test_firewall_poisoned_feedback_changes_nothing_where_the_task_is_frozen(poisoned, arm, changes):
    clean, other = (trajectory(poisoned(poison, arm=arm, **changes))[0] for poison in (False, True))
    assert_bit_equal(clean, other)


@pytest.mark.parametrize(
    ("arm", "least"),
    [("v-paper", 0.005), ("v-exact", 0.02), ("v-learned", 0.02), ("selection", 0.03), ("token-weights", 0.03)],
)
def test_the_same_poison_reaches_the_learner_through_a_task_that_follows_it(poisoned, arm, least):
    """The control of the test above: the poison is read, and turns the learner from its way by so much of it at least."""
    recipes = [poisoned(poison, arm=arm, value={"strength": 1.0}) for poison in (False, True)]
    start = start_of(recipes[0])
    clean, other = (trajectory(recipe)[0] for recipe in recipes)
    assert apart(clean, other, start) > least


@pytest.mark.parametrize("reward", ["solution", "answer"])
def test_firewall_the_object_that_holds_g_down_cannot_reach_the_learners_optimizer(tmp_path, tokenizer, reward):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="v-learned", feedback={"reward": reward})
    session = session_of(recipe)
    parts = session.parts
    reached, queue = set(), [parts.meta]
    while queue:
        thing = queue.pop()
        if id(thing) in reached or isinstance(thing, type) or type(thing).__name__ in ("module", "function"):
            continue
        reached.add(id(thing))
        queue.extend(gc.get_referents(thing))
    assert id(parts.meta.optimizer) in reached
    assert id(session.optimizer) not in reached
    assert id(session.optimizer.torch) not in reached


@pytest.mark.parametrize(
    ("arm", "reward"),
    [
        ("v", "solution"),
        ("v", "answer"),
        ("one-hot", "solution"),
        ("selection", "solution"),
        ("token-weights", "solution"),
    ],
)
def test_firewall_no_problem_of_feedback_or_evaluation_enters_a_learner_batch(
    tmp_path, tokenizer, half_right, arm, reward
):
    recipe = tiny_recipe(tmp_path, tokenizer, arm=arm, budget={"steps": 12}, feedback={"reward": reward})
    both = sums(30, 1) + sums(12, 2) + sums(10, 3)
    write_jsonl(tmp_path / "stream.jsonl", both)
    _, seen, parts = trajectory(recipe)
    keys = {key for batches in seen for batch in batches for row in batch.keys for key in row}
    assert not keys & parts.held_back
    left_out = parts.left_out(parts.stream.state_dict())
    assert left_out[f"stream {tmp_path / 'stream.jsonl'}"][HELD_BACK] > 0


@pytest.mark.parametrize(
    ("arm", "reward"),
    [
        *((arm, "solution") for arm in ("v-exact", "v-learned", "v-paper", "selection", "token-weights")),
        *((arm, "answer") for arm in ("v-exact", "v-paper")),
    ],
)
def test_a_meta_update_leaves_no_trace_on_the_learner(tmp_path, tokenizer, half_right, arm, reward):
    recipe = tiny_recipe(tmp_path, tokenizer, "gpt2", arm=arm, feedback={"reward": reward})
    parts = assemble(recipe)
    batches = parts.stream.next()
    parts.learner.loss(
        parts.learner.forward(batches[0]), parts.base.targets(batches[0], parts.learner.forward(batches[0]).detach())
    ).backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in parts.learner.named_parameters()}
    random_state, training = torch.get_rng_state(), parts.learner.module.training
    designer = [p.detach().clone() for p in parts.construction.parameters()]
    parts.meta(batches)
    assert parts.meta.updates == 1
    for name, p in parts.learner.named_parameters():
        assert torch.equal(p, before[name][0])
        assert torch.equal(p.grad, before[name][1])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert parts.learner.module.training == training
    assert all(not p.requires_grad or p.grad is None for p in parts.construction.parameters())
    if arm == "v-paper":
        assert any(not torch.equal(a, b) for a, b in zip(designer, parts.construction.parameters(), strict=True))


def test_constructed_targets_carry_a_graph_in_a_meta_step_and_none_for_the_learner(tmp_path, tokenizer):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v-paper"))
    batch = parts.stream.next()[0]
    state = parts.learner.forward(batch)
    assert state.logits.z_NK.requires_grad
    detached = state.detach().logits
    assert not any(t.requires_grad for t in (detached.z_NK, detached.mean_lse, all_logits(state.detach())))
    task = parts.construction.targets(batch, state.detach())
    assert task.target.q_NK.requires_grad
    detached = task.detach()
    assert not detached.target.q_NK.requires_grad
    assert not any(value.requires_grad for value in detached.side.values())


@pytest.mark.parametrize("arm", ["v-exact", "v-learned", "v-paper", "self-distillation", "selection", "token-weights"])
def test_the_loop_hands_the_learner_tasks_without_a_graph(tmp_path, tokenizer, monkeypatch, arm):
    tasks = []
    loss = LanguageLearner.loss
    monkeypatch.setattr(LanguageLearner, "loss", lambda *arguments: tasks.append(arguments[2]) or loss(*arguments))
    trajectory(tiny_recipe(tmp_path, tokenizer, arm=arm, value={"every_steps": 2, "strength": 1.0}))
    learned_from = [task for task in tasks if "alpha_N" in task.side][-6:]
    assert len(learned_from) == 6
    soft = any(bool((task.side["alpha_N"] > 0).any()) for task in learned_from)
    assert soft == (arm not in ("selection", "token-weights"))
    assert not any(task.target.q_NK.requires_grad for task in learned_from)
    assert not any(value.requires_grad for task in learned_from for value in task.side.values())


def test_accumulation_one_by_eight_equals_eight_by_one(tmp_path, tokenizer):
    def after(batch_size, accumulation):
        recipe = tiny_recipe(
            tmp_path,
            tokenizer,
            arm="self-distillation",
            stream={"batch_size": batch_size, "accumulation": accumulation},
            budget={"steps": 3},
        )
        return trajectory(recipe)[0]

    whole, pieces = after(8, 1), after(1, 8)
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("model", ["llama", "qwen2", "gpt2", "gemma2"])
def test_packed_documents_have_the_log_probabilities_of_unpacked_ones(model):
    learner = LanguageLearner(tiny_model(model).eval())
    packed = random_batch(2, 24)
    with torch.no_grad():
        together = all_logits(learner.forward(packed)).log_softmax(-1)
        apart = []
        for row in range(2):
            for start in (0, 12):
                piece = packed.rows([row])
                piece = type(piece)(
                    piece.ids_BT[:, start : start + 12],
                    piece.positions_BT[:, start : start + 12],
                    piece.weights_BT[:, start : start + 12],
                    piece.domains,
                    piece.keys,
                )
                apart.append(all_logits(learner.forward(piece)).log_softmax(-1))
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_controls_are_what_they_say():
    learner = LanguageLearner(tiny_model().eval(), top_k=4)
    batch = random_batch()
    state = learner.forward(batch).detach()
    uniform = Smoothing(0.5, "uniform").targets(batch, state).target
    assert torch.equal(uniform.candidates_NK[:, 0], batch.targets_N)
    torch.testing.assert_close(uniform.q_NK[0], torch.tensor([0.625, 0.125, 0.125, 0.125]))
    own = Smoothing(1.0, "self").targets(batch, state).target
    p_NK = all_logits(state).softmax(-1).gather(-1, own.candidates_NK)
    torch.testing.assert_close(own.q_NK, p_NK / p_NK.sum(-1, keepdim=True))
    assert all(len(set(row.tolist())) == 4 for row in own.candidates_NK)
    best = all_logits(state).scatter(-1, batch.targets_N[:, None], -torch.inf).topk(3).indices
    assert torch.equal(own.candidates_NK[:, 1:], best)
    assert OneHot().targets(batch, state).target.q_NK[0].tolist() == [1, 0, 0, 0]


def test_a_new_designer_scores_all_candidates_alike_and_starts_at_its_gate(tmp_path, tokenizer):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v-paper"))
    assert isinstance(parts.construction, LearnedTargets)
    batch = parts.stream.next()[0]
    task = parts.construction.targets(batch, parts.learner.forward(batch).detach())
    torch.testing.assert_close(task.side["log_r_NK"].exp(), torch.full_like(task.side["log_r_NK"], 1 / 8))
    assert float(task.side["alpha_N"].detach().mean()) == pytest.approx(0.1)


def test_a_new_residual_leaves_the_exact_task_as_it_is(tmp_path, tokenizer):
    value = {"strength": 0.7, "subset": "last-1"}
    made = [assemble(tiny_recipe(tmp_path, tokenizer, arm=arm, value=value)) for arm in ("v-exact", "v-learned")]
    tasks = []
    for parts in made:
        batches = parts.stream.next()
        parts.meta.phi = []  # directions alone
        parts.meta(batches)
        tasks.append(parts.construction.targets(batches[0], parts.learner.observe(batches[0])))
    torch.testing.assert_close(tasks[1].target.q_NK, tasks[0].target.q_NK)
    assert float((1 - tasks[0].target.q_NK[:, 0]).mean()) > 0.01


def test_the_adamw_metric_is_the_preconditioner_of_the_step():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5))
    from vpretrain.config import OptimizerConfig

    unused = torch.nn.Parameter(torch.randn(2))
    optimizer = AdamW(
        [("w", parameter), ("unused", unused)],
        OptimizerConfig(lr=1e-3, clip_norm=1e9, betas=(0.0, 0.9)),
        total_steps=100,
    )
    assert optimizer.metric(["w"]) is None
    for _ in range(3):
        parameter.grad = torch.randn(5)
        gradient, before = parameter.grad.clone(), parameter.detach().clone()
        lr = optimizer.learning_rate()
        optimizer.step(1.0)
    # With beta_1 = 0 the realised step is exactly -lr P g.
    torch.testing.assert_close(parameter.detach() - before, -lr * optimizer.metric(["w"])["w"] * gradient)
    assert set(optimizer.metric(["w", "unused"])) == {"w"}
    parameter.grad = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    fresh = AdamW([("w", parameter)], OptimizerConfig(), total_steps=100)
    fresh.step(1.0)
    assert (fresh.metric(["w"])["w"] > 0).tolist() == [True, True, False, True, True]


def change_in_scores(start, stop):
    """How far a designer's scores of each target of two packed documents change with these tokens, at the same state."""
    learner = LanguageLearner(tiny_model().eval(), top_k=6)
    designer = random_designer(learner, DesignerConfig(hidden_size=32, layers=2, heads=2, top_k=6))
    batch = random_batch(1)
    state, ids_BT = learner.observe(batch), batch.ids_BT.clone()
    ids_BT[:, start:stop] = ids_BT[:, start:stop] % 60 + 1
    with torch.no_grad():
        before, after = (designer(given, state)[0] for given in (batch, replace(batch, ids_BT=ids_BT)))
    return (after - before).abs().amax(-1)


def test_a_designer_sees_the_true_token_of_each_target_and_none_after_it():
    change_N = change_in_scores(9, 10)  # the fifth target: the first is token 5
    assert float(change_N[4]) > 0.01
    assert float(change_N[:4].max()) < 1e-5


def test_scores_of_a_packed_document_do_not_depend_on_the_one_before_it():
    change_N = change_in_scores(0, 12)
    assert float(change_N[:7].min()) > 0.01
    assert float(change_N[7:].max()) < 1e-5
