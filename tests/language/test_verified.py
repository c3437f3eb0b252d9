"""Feedback by a verifier: the policy gradient of right answers, drawn anew, and nothing of it anywhere but in the evaluator."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from tokenizers import decoders
from worlds import sums, tiny_recipe, vision_recipe, write_jsonl

from vpretrain import distributed, run_recipe
from vpretrain.errors import Paused, UserError
from vpretrain.language.assemble import assemble, load_evaluation
from vpretrain.language.data.encode import PROMPT_FILLS, Document, collate, prompt_ids
from vpretrain.language.evaluation.solve import decode
from vpretrain.language.model.batch import AttemptBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.verified import AGREED, BATCHES, leave_one_out
from vpretrain.language.workload import workload
from vpretrain.method.value import gradient
from vpretrain.run.checkpoint import checkpoints, load_checkpoint

FOLLOWED = {"strength": 1.0, "every_steps": 1, "batch_size": 2, "length": 48}  # a meta update at each step


def recipe_of(tmp_path, tokenizer, family="llama", **changes):
    feedback = {"reward": "answer", "batch_size": 2, "attempts": 4} | changes.pop("feedback", {})
    return tiny_recipe(tmp_path, tokenizer, family, feedback=feedback, **changes)


@pytest.fixture
def judged_by(monkeypatch):
    """Sets what is right: the tiny learner, whose weights are random, never solves a problem."""

    def judge(is_right):
        monkeypatch.setattr("vpretrain.language.verified.solves", lambda text, example: is_right(text))

    return judge


def is_even(text):
    """Right for about half of all attempts."""
    return sum(map(ord, text)) % 2 == 0


def theta_after(recipe):
    run_recipe(recipe)
    return load_checkpoint(checkpoints(recipe.directory / "checkpoints")[-1])[0]["learner"]


def are_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def same_rows(one, other):
    tensors = [(value, vars(other)[name]) for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return one.keys == other.keys and all(torch.equal(a, b) for a, b in tensors)


def attempts(tokenizer):
    """Three attempts at each of two problems, of different lengths, one right among the first and two among the second."""
    lengths, generator = [(3, 2), (3, 7), (3, 1), (5, 4), (5, 2), (5, 9)], torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 40, (sum(length),), generator=generator).tolist() for length in lengths]
    rows = [
        Document(tuple(own), prompt, False, "d", f"problem {number // 3}")
        for number, (own, (prompt, _)) in enumerate(zip(ids, lengths, strict=True))
    ]
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    batch = AttemptBatch(**vars(collate(rows, tokenizer)), advantages_B=leave_one_out(rewards).flatten(), attempts=3)
    return rows, batch


def test_the_baseline_is_the_mean_of_the_other_attempts():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.5, 0.0, 0.25]])
    expected = [[1.0, -0.5, -0.5], [-1.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.375, -0.375, 0.0]]
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor(expected))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2-untied"])
def test_g_down_is_minus_the_policy_gradient(tokenizer, family):
    rows, batch = attempts(tokenizer)
    learner = LanguageLearner(tiny_model(family).eval())
    theta = dict(learner.named_parameters())
    g_down = gradient(lambda at: learner.evaluate(batch, at), {n: p.detach() for n, p in theta.items()})
    objective = torch.zeros(())
    for row, advantage in zip(rows, [1.0, -0.5, -0.5, -1.0, 0.5, 0.5], strict=True):
        log_p_TV = learner.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        log_p = sum(log_p_TV[t - 1, row.ids[t]] for t in range(row.context, len(row.ids)))
        objective = objective + advantage * log_p / len(rows)
    expected = torch.autograd.grad(objective, list(theta.values()), allow_unused=True, materialize_grads=True)
    assert any(bool(g.any()) for g in expected)
    for name, g in zip(theta, expected, strict=True):
        torch.testing.assert_close(g_down[name], -g, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_mean_over_problems_of_which_those_without_a_gradient_are_none(tokenizer):
    _, batch = attempts(tokenizer)
    learner = LanguageLearner(tiny_model().eval())
    theta = {n: p.detach() for n, p in learner.named_parameters()}
    one, other = batch.apart()
    assert (batch.weight, one.weight, other.weight) == (2, 1, 1)
    assert (one.keys, other.keys) == ((("problem 0",),) * 3, (("problem 1",),) * 3)
    mean = (learner.evaluate(one, theta) + learner.evaluate(other, theta)) / 2
    torch.testing.assert_close(learner.evaluate(batch, theta), mean)
    agreed = replace(batch, advantages_B=torch.tensor([0.0, 0.0, 0.0, -1.0, 0.5, 0.5]))
    assert agreed.weight == 1
    assert [part.keys for part in agreed.apart()] == [other.keys]
    idle = batch.without_effect()
    assert (idle.weight, idle.apart()) == (0, [])
    assert not any(bool(g.any()) for g in gradient(lambda at: learner.evaluate(idle, at), theta).values())


def test_a_batch_holds_attempts_after_their_prompts_and_is_drawn_without_a_trace(tmp_path, tokenizer, judged_by):
    judged_by(is_even)
    recipe = recipe_of(tmp_path, tokenizer, "gpt2")  # which has dropout
    parts = assemble(recipe)
    before, training = torch.get_rng_state(), parts.learner.module.training
    (batch,) = parts.feedback.next().values()
    assert torch.equal(torch.get_rng_state(), before)
    assert training
    assert parts.learner.module.training
    assert all(p.grad is None for _, p in parts.learner.named_parameters())
    examples = {e.key: e for e in parts.feedback._feedback.examples["sums"]}
    for row, ((key,), weights_T) in enumerate(zip(batch.keys, batch.weights_BT, strict=True)):
        prompt = prompt_ids(examples[key], tokenizer)
        places = weights_T.nonzero()[:, 0].tolist()
        assert batch.ids_BT[row, : len(prompt)].tolist() == prompt
        assert places == list(range(len(prompt), len(prompt) + len(places)))
        assert 1 <= len(places) <= recipe.evaluation.max_new_tokens
    assert {batch.keys.count(key) for key in batch.keys} == {4}
    sums_P = batch.advantages_B.view(-1, 4).sum(1)
    torch.testing.assert_close(sums_P, torch.zeros_like(sums_P))
    assert (batch.advantages_B != 0).all()
    assert same_rows(batch, next(iter(assemble(recipe).feedback.next().values())))


def test_the_cursor_is_all_that_later_attempts_depend_on(tmp_path, tokenizer, judged_by):
    judged_by(is_even)
    feedback = assemble(recipe_of(tmp_path, tokenizer)).feedback
    feedback.next()
    cursor = json.loads(json.dumps(feedback.state_dict()))
    torch.manual_seed(1)
    first = feedback.next()["sums"]
    later = feedback.next()["sums"]
    feedback.load_state_dict(cursor)
    torch.manual_seed(2)
    assert same_rows(feedback.next()["sums"], first)
    assert same_rows(feedback.next()["sums"], later)
    assert not torch.equal(first.ids_BT, later.ids_BT)


def test_processes_divide_the_problems_and_one_without_any_makes_the_same_passes(
    tmp_path, tokenizer, judged_by, monkeypatch
):
    judged_by(is_even)
    feedback = assemble(recipe_of(tmp_path, tokenizer, feedback={"batch_size": 3, "attempts": 8})).feedback
    whole = feedback.next()["sums"]
    assert whole.weight == 3
    monkeypatch.setattr(distributed, "broadcast", lambda item: item)
    for size, expected in ((2, [2, 1]), (4, [1, 1, 1, 0])):
        monkeypatch.setattr(distributed, "size", lambda size=size: size)
        keys, counts = [], []
        for rank in range(size):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            feedback.load_state_dict({name: {"sums": 0} for name in ("batches_drawn", "differed", "agreed")})
            own = feedback.next()["sums"]
            counts.append(own.weight)
            keys += [part.keys for part in own.apart()]
        assert counts == expected
        assert sorted(keys) == sorted(part.keys for part in whole.apart())


@pytest.mark.parametrize("right", [True, False])
def test_problems_whose_attempts_agree_are_counted_and_the_direction_stays(tmp_path, tokenizer, judged_by, right):
    parts = assemble(recipe_of(tmp_path, tokenizer, arm="v", value=FOLLOWED))
    batches = parts.stream.next()
    judged_by(is_even)
    assert parts.meta(batches)["g_down_norm"] > 0
    direction, drawn = parts.meta.direction, parts.feedback.batches_drawn["sums"]
    agreed = parts.feedback.agreed["sums"]
    judged_by(lambda text: right)
    assert parts.meta(batches) == {}
    assert parts.meta.direction is direction
    assert not parts.meta.unmatched
    assert parts.feedback.batches_drawn["sums"] == drawn + BATCHES
    assert parts.feedback.agreed["sums"] == agreed + 2 * BATCHES
    left_out = parts.left_out(parts.stream.state_dict())
    assert left_out["feedback of domain sums"] == {AGREED: agreed + 2 * BATCHES}


@pytest.mark.parametrize("found", [False, True])
def test_a_judgement_for_which_too_few_problems_have_a_gradient_is_postponed(
    tmp_path, tokenizer, judged_by, monkeypatch, found
):
    judged_by(is_even)
    parts = assemble(recipe_of(tmp_path, tokenizer, arm="v", value={"strength": "auto", "every_steps": 1}))
    meta, batches, calls = parts.meta, parts.stream.next(), []
    answers = [parts.feedback.next()] if found else []  # enough for a direction, but not for the judgement
    monkeypatch.setattr(parts.feedback, "next", lambda: calls.append(1) or (answers.pop() if answers else {}))
    meta.updates = meta.strength.next = 8
    record = meta(batches)
    assert ("g_down_norm" in record) == found
    assert "strength" not in record
    assert (meta.strength.next, meta.strength.beta, meta.strength.judgements) == (16, 0.0, [])
    asked = len(calls)
    for _ in range(7):
        assert meta(batches) == {}
    assert (meta.updates, len(calls)) == (16, asked)  # no attempt is made until then


def test_where_one_domain_has_a_gradient_it_is_aligned_with_its_own_rows(tmp_path, tokenizer, judged_by):
    judged_by(is_even)
    recipe = recipe_of(tmp_path, tokenizer, arm="v", value=FOLLOWED)
    (source,) = recipe.feedback.sources
    other = write_jsonl(tmp_path / "others.jsonl", sums(6, 4))
    sources = [source, source.model_copy(update={"path": other, "domain": "text"})]
    parts = assemble(recipe.model_copy(update={"feedback": recipe.feedback.model_copy(update={"sources": sources})}))
    with parts.learner.meta_mode():
        g_down = parts.meta.feedback_gradients()
        assert g_down.keys() == {"sums", "text"}
        batches = [batch for _ in range(8) for batch in parts.stream.next()]
        (problem,) = parts.meta.problems({"text": g_down["text"]}, batches)
    assert set(problem.batch.domains) == {"text"}
    assert problem.weight == 0.5


@pytest.mark.usefixtures("judged_early")
def test_without_a_gradient_a_run_is_one_hot_bit_for_bit(tmp_path, tokenizer, judged_by):
    """With dropout: attempts draw random numbers of their own."""
    judged_by(lambda text: False)
    one_hot = theta_after(recipe_of(tmp_path, tokenizer, "gpt2", name="one-hot", arm="one-hot"))
    steered = recipe_of(tmp_path, tokenizer, "gpt2", name="steered", arm="v")
    assert are_equal(one_hot, theta_after(steered))
    result = json.loads((steered.directory / "result.json").read_text())
    assert result["left_out"]["feedback of domain sums"][AGREED] > 0


@pytest.mark.parametrize(
    ("arm", "changes", "frozen"),
    [("v-paper", {"designer": {"lr": 1e-30}}, True), ("v-paper", {}, False), ("v", {"value": FOLLOWED}, False)],
)
def test_firewall_what_is_right_reaches_the_learner_only_through_the_task(
    tmp_path, tokenizer, judged_by, arm, changes, frozen
):
    ends = []
    for name, is_right in (("even", is_even), ("odd", lambda text: not is_even(text))):
        judged_by(is_right)
        ends.append(theta_after(recipe_of(tmp_path, tokenizer, name=name, arm=arm, **changes)))
    assert are_equal(*ends) == frozen


@pytest.mark.usefixtures("judged_early")
@pytest.mark.parametrize("strength", [1.0, "auto"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, tokenizer, judged_by, strength):
    judged_by(is_even)
    value = FOLLOWED | {"strength": strength, "feedback_every": 2}
    whole = theta_after(recipe_of(tmp_path, tokenizer, name="whole", arm="v", value=value))
    halted = recipe_of(tmp_path, tokenizer, name="halted", arm="v", value=value)
    with pytest.raises(Paused):
        run_recipe(halted, until=0.5)
    run_recipe(halted, resume=True)
    assert are_equal(whole, load_checkpoint(checkpoints(halted.directory / "checkpoints")[-1])[0]["learner"])


def test_a_solution_holds_all_tokens_that_were_chosen_and_none_after_its_end(tmp_path, tokenizer):
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    recipe = tiny_recipe(tmp_path, tokenizer)
    learner, problems = assemble(recipe).learner, load_evaluation(recipe, tokenizer).problems[:1]
    stopped = tokenizer("4.\nquestion:")["input_ids"]
    whole = [*tokenizer("4.\nquestion: 3")["input_ids"], tokenizer.eos_token_id]
    generate = learner.generate

    def scripted(**kwargs):
        start = kwargs["input_ids"].shape[1]

        def force(ids_BT, scores_BV):
            only_BV = torch.full_like(scores_BV, -torch.inf)
            only_BV[0, whole[min(ids_BT.shape[1] - start, len(whole) - 1)]] = 0.0
            only_BV[1:, tokenizer.eos_token_id] = 0.0  # ends at once
            return only_BV

        return generate(**kwargs, logits_processor=[force])

    learner.generate = scripted
    ended = [tokenizer.eos_token_id]
    assert decode(learner, tokenizer, problems, 60, samples=2) == [[whole, ended]]
    assert decode(learner, tokenizer, problems, 60, samples=2, stop=["\nquestion:"]) == [[stopped, ended]]
    assert decode(learner, tokenizer, problems, 5, samples=2) == [[whole[:5], ended]]


def test_draws_are_from_the_learners_own_distribution_whatever_its_generation_config_says(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    learner, problems = assemble(recipe).learner, load_evaluation(recipe, tokenizer).problems[:2]
    drawn = []
    for changes in ({}, {"top_k": 1, "min_p": 0.9, "repetition_penalty": 5.0, "suppress_tokens": [*range(3, 20)]}):
        vars(learner.model.generation_config).update(changes)
        torch.manual_seed(0)
        drawn.append(decode(learner, tokenizer, problems, 12, samples=2))
    assert drawn[0] == drawn[1]


def test_answers_need_no_solution_but_must_be_there(tmp_path, tokenizer):
    bare = [{"question": f"2: {n} + 1 ?", "answer": str(n + 1), "note": "look it up"} for n in range(4)]
    path = write_jsonl(tmp_path / "bare.jsonl", bare)
    source = {"path": path, "domain": "sums", "prompt": "{question} ", "response": "{answer}"}
    assert len(assemble(recipe_of(tmp_path, tokenizer, feedback={"sources": [source]})).feedback.keys) == 4
    # The prompt must leave room for an attempt, whatever the solution takes.
    rows = [*bare[:2], {**bare[2], "note": "long " * 20}, {**bare[3], "question": "long " * 20}]
    uneven = write_jsonl(tmp_path / "uneven.jsonl", rows)
    longer = source | {"path": uneven, "response": "{note} #### {answer}"}
    feedback = assemble(recipe_of(tmp_path, tokenizer, feedback={"sources": [longer], "batch_size": 3})).feedback
    assert feedback.left_out == {uneven: {PROMPT_FILLS: 1}}
    assert len({example.key for example, _ in feedback._feedback.drawn("sums", 0)}) == 3
    unmarked = write_jsonl(tmp_path / "unmarked.jsonl", [{**row, "answer": ""} for row in bare[:3]] + bare[3:])
    source |= {"path": unmarked, "response": "{note}"}
    with pytest.raises(
        UserError, match=r"feedback 'sums': 3 of 4 problems have no final answer that attempts could be"
    ):
        assemble(recipe_of(tmp_path, tokenizer, feedback={"sources": [source]}))
    plain = assemble(recipe_of(tmp_path, tokenizer, feedback={"sources": [source], "reward": "solution"}))
    assert not isinstance(next(iter(plain.feedback.next().values())), AttemptBatch)


def test_what_does_not_fit_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"feedback\.attempts"):
        recipe_of(tmp_path, tokenizer, feedback={"attempts": 1})
    with pytest.raises(UserError, match=r"feedback.batch_size x feedback.attempts is 2,097,152, above 1,048,576"):
        recipe_of(tmp_path, tokenizer, feedback={"batch_size": 2**16, "attempts": 32, "length": 8})
    with pytest.raises(UserError, match="reward"):
        vision_recipe(tmp_path, feedback={"reward": "answer"})
    with pytest.raises(UserError, match="which estimate does not count: use profile"):
        workload(recipe_of(tmp_path, tokenizer, arm="v"))
