"""The strength that chooses itself: its share and radius, when it is judged, and what a judgement sees."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from worlds import tiny_recipe

from vpretrain.files import read_lines
from vpretrain.language.assemble import assemble
from vpretrain.language.task.values import candidate_values
from vpretrain.method.judgement import in_turn
from vpretrain.method.losses import stream_loss
from vpretrain.method.strength import Judgement, Strength, best_beta, least_steps
from vpretrain.method.value import gradient, inner, norm
from vpretrain.run import run_recipe


def test_the_share_is_where_the_cosine_has_its_maximum():
    """Which lies at an end, or where its derivative says: beta = (B C - A E) / (A F - B E)."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(60):
        G, g, d = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        g /= g.norm()
        A, B, E, F = float(G @ g), float(G @ d), float(g @ d), float(d @ d)
        ends = [0.0, 1.0, min(1.0, max(0.0, (B - A * E) / (A * F - B * E)))]
        expected = max(ends, key=lambda beta: float((g + beta * d) @ G / (g + beta * d).norm()))
        assert best_beta([Judgement([1.0], [A], [B], E, F)]) == pytest.approx(expected, abs=0.01)
        inside += 0 < expected < 1
    assert inside > 5


def judgement(gains, agreement=(1.0,)):
    """Of pairs that gain so much from the whole tilt, which leaves the length of the step as it is."""
    return Judgement(list(agreement), [0.0] * len(gains), gains)


def scattered(mean, error):
    """Four numbers with this mean, and this standard error."""
    return [mean - error * math.sqrt(3), mean + error * math.sqrt(3)] * 2


def test_without_a_direction_nothing_is_taken():
    for error, beta in ((0.3, 1.0), (0.36, 0.0)):
        assert best_beta([judgement([1.0] * 4, scattered(1.0, error))]) == beta
    assert best_beta([judgement([1.0] * 4, scattered(-1.0, 0.1))]) == 0.0
    assert best_beta([judgement([1.0] * 4, [math.nan] * 4)]) == 0.0
    # Two that agree say more than one.
    assert best_beta([judgement([1.0] * 4, scattered(1.0, 0.36))] * 2) == 1.0


@pytest.mark.parametrize(("every_steps", "burn_in"), [(1, 0), (4, 0), (4, 10), (16, 0)])
def test_the_shortest_run_with_two_judgements(every_steps, burn_in):
    def judgements(total):
        strength, made = Strength.that_chooses_itself(every_steps), 0
        for update, step in enumerate(range(burn_in, total, every_steps)):
            if strength.due(update, step / total):
                strength.judge(update, Judgement(scattered(0.0, 1.0)))
                made += 1
        return made

    least = least_steps(every_steps, burn_in)
    assert (judgements(least - 1), judgements(least)) == (1, 2)


def test_judgements_are_pooled_whatever_their_unit():
    """|G| over S differs from |G| over all parameters, and the two questions are asked on different ones."""
    agree, oppose = Judgement([1.0, 1.1, 0.9]), Judgement([-1e3, -1.1e3, -0.9e3])
    assert best_beta([agree, oppose]) == 1.0
    assert best_beta([oppose, agree]) == 0.0


def test_a_direction_is_followed_before_its_gain_is_measured():
    strength = Strength.that_chooses_itself(1)
    asked = []
    for update, seen in (
        (8, Judgement([0.4, 1.0, -1.0, 0.2] * 2)),
        (16, Judgement([1.0, 1.1, 0.9])),
        (40, judgement(scattered(-9.0, 0.1))),
        (80, judgement(scattered(-9.0, 0.1))),
        (160, Judgement([-1.0, -1.1, -0.9])),
    ):
        asked.append(strength.in_doubt(seen))
        assert strength.next == update
        strength.judge(update, seen)
        assert strength.beta == (update == 16)
    assert asked == [False, False, True, True, False]


def test_a_direction_is_followed_until_it_is_seen_to_harm():
    for error, beta in ((0.0, 0.0), (0.9, 0.0), (1.1, 1.0)):
        assert best_beta([judgement(scattered(-1.0, error))]) == pytest.approx(beta, abs=1e-5)


def test_a_judgement_counts_twice_as_much_as_the_one_before_it():
    good, bad = judgement([1.0] * 4), judgement([-1.0] * 4)
    assert best_beta([good, bad]) == 1.0
    assert best_beta([bad, good]) == 0.0


def test_the_trust_region_grows_where_the_whole_tilt_is_seen_to_help_and_shrinks_where_less_is_taken():
    helps, may_help, harms = scattered(1.0, 0.45), scattered(1.0, 0.9), scattered(-9.0, 0.1)
    for seen, radii in (
        ([helps, helps, helps, helps, harms, harms, harms], [1, 2, 4, 4, 2, 1, 1]),
        ([may_help, may_help], [1, 1]),
    ):
        strength = Strength()
        for update, (gains, radius) in enumerate(zip(seen, radii, strict=True)):
            strength.judge(update, judgement(gains))
            assert strength.radius == radius


@pytest.mark.parametrize(
    ("gain", "steps"),
    [(-1.0, [8, 16, 32, 64, 128, 256, 512, 1024, 1536]), (1.0, [8, 32, 128, 512, 1024, 1536])],
)
@pytest.mark.parametrize("every_steps", [1, 2, 8])
def test_judgements_become_rare_and_nothing_is_done_between_them_while_nothing_is_taken(every_steps, gain, steps):
    strength = Strength.that_chooses_itself(every_steps)
    busy, judged = [], []
    for step in range(0, 1600, every_steps):
        update = step // every_steps
        if strength.idle(update, progress=0.0):
            continue
        busy.append(step)
        if strength.due(update, progress=0.0):
            judged.append(step)
            strength.judge(update, judgement([gain]))
    assert judged == steps
    assert busy == (judged if gain < 0 else list(range(8, 1600, every_steps)))


def test_late_in_a_run_nothing_is_judged(tmp_path, tokenizer):
    kwargs = {"value": {"every_steps": 2}, "feedback": {"batch_size": 1}}
    for steps, judged in ((17, [8]), (16, [])):
        _, lines = run_lines(tiny_recipe(tmp_path, tokenizer, arm="v", budget={"steps": steps}, **kwargs))
        assert [line["step"] for line in lines if "strength" in line] == judged


def test_a_judgement_is_of_the_direction_that_was_just_found(tmp_path, tokenizer, monkeypatch):
    """An older one has been followed for r steps."""
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", value={"align": "dot"}))  # which needs no task for u
    asked = []
    monkeypatch.setattr(
        "vpretrain.language.assemble.candidate_values",
        lambda learner, batch, state, u: asked.append(u) or candidate_values(learner, batch, state, u),
    )
    parts.meta.strength.beta = 1.0
    for update in range(2):
        parts.meta.strength.next = update
        parts.meta(parts.stream.next())
        assert asked
        assert all(u is parts.meta.direction for u in asked)
        asked.clear()


def test_a_judgement_sees_the_inner_products_in_the_metric(tmp_path, tokenizer):
    """Against whole gradients of every pair that has not given the direction."""
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v"))
    meta, learner = parts.meta, parts.learner
    generator = torch.Generator().manual_seed(0)
    P = {n: torch.rand(p.shape, generator=generator) + 0.1 for n, p in learner.named_parameters()}
    meta.strength.next, meta.strength.beta = 0, 1.0
    batches, before = parts.stream.next(), parts.feedback.state_dict()
    meta(batches, lambda names: {n: P[n] for n in names})
    (seen,) = meta.strength.judgements
    parts.feedback.load_state_dict(before)
    parts.feedback.next()
    asked_first, pairs = next_pairs(parts.feedback, 8), next_pairs(parts.feedback, 4)
    theta = meta.theta_at(P)
    batch = batches[0].restrict(**meta.part)
    meta.strength.radius = 1.0  # at which it was made
    with learner.meta_mode():
        base, tilted = (
            gradient(stream_loss(learner, parts.construction, batch, 1.0, theta, targets), theta)
            for targets in parts.construction.ends()
        )
        first, G = (
            [gradient(lambda at, pair=pair: learner.evaluate(pair, at), theta) for pair in of_question]
            for of_question in (asked_first, pairs)
        )
    d = {n: g - base[n] for n, g in tilted.items()}
    C, E, F = (float(inner(one, other, P)) for one, other in ((base, base), (base, d), (d, d)))
    near = {"rel": 2e-3, "abs": 2e-4 * math.sqrt(F / C)}  # P g_base and P d are held in half precision
    assert (seen.e, seen.f) == pytest.approx((E / C, F / C), **near)
    unit = sum(float(norm(g)) for g in G) / len(G) * C / float(norm(base))
    assert seen.a == pytest.approx([float(inner(g, base, P)) / unit for g in G], **near)
    assert seen.b == pytest.approx([float(inner(g, d, P)) / unit for g in G], **near)
    assert seen.agreement == pytest.approx(agreement(meta.direction, first), rel=1e-4, abs=1e-6)


def next_pairs(feedback, least):
    pairs = []
    while len(pairs) < least:
        pairs += [pair for batch in feedback.next().values() for pair in batch.apart()]
    return pairs


def agreement(u, G):
    return [float(sum((g[n] * u[n]).sum() for n in u) / norm({n: g[n] for n in u})) for g in G]


def test_the_first_question_takes_eight_pairs_and_no_pass_over_the_stream(tmp_path, tokenizer, monkeypatch):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", value={"align": "dot"}))  # which needs no g_pre for u
    meta, learner = parts.meta, parts.learner
    meta.strength.next = 0
    batches, before = parts.stream.next(), parts.feedback.state_dict()
    monkeypatch.setattr("vpretrain.method.judgement.stream_loss", None)
    meta(batches)
    (seen,) = meta.strength.judgements
    parts.feedback.load_state_dict(before)
    parts.feedback.next()
    pairs = next_pairs(parts.feedback, 8)
    theta = meta.theta_at(meta.direction)
    with learner.meta_mode():
        G = [gradient(lambda at, pair=pair: learner.evaluate(pair, at), theta) for pair in pairs]
    assert seen.agreement == pytest.approx(agreement(meta.direction, G), rel=1e-4, abs=1e-6)
    assert not seen.a


@pytest.mark.parametrize(("batch", "asked"), [(2, (8, 4)), (6, (12, 6)), (10, (10, 8))])
def test_the_first_question_takes_a_feedback_batch_whole_and_the_second_at_most_eight_pairs(
    tmp_path, tokenizer, batch, asked
):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", feedback={"batch_size": batch}))
    theta_S = parts.meta.theta_at()
    with parts.learner.meta_mode():
        lengths = [parts.meta.judge.along(0, theta_S, theta_S, question=question)[0] for question in (0, 1)]
    assert tuple(map(len, lengths)) == asked


@pytest.mark.parametrize(("batch", "asked"), [(1, (8, 4)), (16, (16, 4))])
def test_over_shards_there_are_as_many_rounds_as_each_question_takes_pairs(
    tmp_path, tokenizer, monkeypatch, batch, asked
):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm="v", feedback={"batch_size": batch}))
    eight = SimpleNamespace(all_gather=lambda item: [item] * 8, size=lambda: 8, rank=lambda: 0)
    monkeypatch.setattr("vpretrain.method.judgement.distributed", eight)
    monkeypatch.setattr(type(parts.learner), "has_own_gradient", False)
    theta_S = parts.meta.theta_at()
    with parts.learner.meta_mode():
        lengths = [parts.meta.judge.along(0, theta_S, theta_S, question=question)[0] for question in (0, 1)]
    assert tuple(map(len, lengths)) == asked


def test_a_judgement_that_is_nan_refuses_and_is_not_remembered():
    good = Judgement([1.0, 1.1, 0.9, 1.0])
    strength = Strength.that_chooses_itself(8)
    strength.judge(1, good)
    strength.judge(2, Judgement([float("nan"), 1.0, 1.0, 1.0]))
    assert (strength.beta, strength.judgements) == (0.0, [good])
    strength.judge(4, good)
    assert strength.beta == 1.0


def test_pairs_in_turn_are_of_each_domain_whoever_begins():
    pairs = [("math", 1), ("math", 2), ("math", 3), ("code", 4), ("law", 5), ("law", 6)]
    domains = [[domain for domain, _ in in_turn(pairs, first=first)] for first in (0, 4)]
    assert domains == [
        ["math", "code", "law", "math", "law", "math"],
        ["code", "law", "math", "law", "math", "math"],
    ]
    assert sorted(number for _, number in in_turn(pairs, first=2)) == [1, 2, 3, 4, 5, 6]


def run_lines(recipe):
    result = run_recipe(recipe, overwrite=True)
    return result, read_lines(recipe.directory / "metrics.jsonl")


def test_a_strength_that_chooses_itself_ignores_noise_and_follows_a_planted_direction(tmp_path, tokenizer):
    """The stream contradicts the feedback's notation, so that the tilt has something to say."""
    kwargs = {"budget": {"steps": 40}, "feedback": {"batch_size": 6}, "value": {"every_steps": 1, "batch_size": 2}}
    noise, _ = run_lines(tiny_recipe(tmp_path, tokenizer, arm="random-feedback", **kwargs))
    one_hot, _ = run_lines(tiny_recipe(tmp_path, tokenizer, arm="one-hot", **kwargs))
    v, lines = run_lines(tiny_recipe(tmp_path, tokenizer, arm="v", **kwargs))
    assert noise.mean_alpha < 1e-3 < 5e-3 < v.mean_alpha
    assert noise.answer_nll == pytest.approx(one_hot.answer_nll, abs=0.02)
    (judgement,) = (line for line in lines if "strength" in line)
    assert judgement["step"] == 8
    assert judgement["strength"] > 0.5
