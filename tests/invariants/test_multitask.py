"""Multitask value: matched by domain (Eq 46) and as one weighted sum (Eq 18), against their definitions."""

from __future__ import annotations

import pytest
import torch
from models import all_logits, random_batch, tiny_model

from vpretrain import distributed
from vpretrain.language.config import DesignerConfig
from vpretrain.language.inspection.doctor import random_designer
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import ExactTask, LearnedTargets, OneHot
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Task
from vpretrain.method.strength import Strength
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import Align, gradient, inner, jvp, norm


class TwoDomains:
    """Feedback of two domains, the same batches every time."""

    weights = {"math": 0.75, "code": 0.25}  # noqa: RUF012

    def next(self):
        return {"math": random_batch(2, seed=11, domain="math"), "code": random_batch(2, seed=12, domain="code")}


def make(matched: bool, kind: str, construction=None):
    learner = LanguageLearner(tiny_model().eval(), top_k=6)
    construction = construction or LearnedTargets(
        random_designer(learner, DesignerConfig(hidden_size=32, layers=1, heads=2, top_k=6))
    )
    return MetaUpdate(
        learner=learner, construction=construction, feedback=TwoDomains(), engine=jvp, kind=kind,
        subset=alignment_subset(learner.module, "last-1"), part={"rows": 2, "length": 24}, matched=matched,
        lr=1e-3, clip_norm=1.0,
    )  # fmt: skip


def g_pre(meta, batch):
    at = {n: p.detach() for n, p in meta.learner.named_parameters() if n in meta.subset}

    def loss(parameters):
        state = meta.learner.forward(batch, parameters)
        return meta.learner.loss(state, meta.construction.targets(batch, state.detach()).detach())

    with meta.learner.meta_mode():
        return gradient(loss, at)


def g_down(meta, batch):
    at = {n: p.detach() for n, p in meta.learner.named_parameters() if n in meta.subset}
    with meta.learner.meta_mode():
        return gradient(lambda parameters: meta.learner.evaluate(batch, parameters), at)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_matched_domains_are_aligned_with_their_own_rows(kind):
    meta = make(True, kind)
    stream = {"math": random_batch(2, seed=1, domain="math"), "code": random_batch(2, seed=2, domain="code")}
    align = Align(kind)
    expected = sum(
        weight * align(g_down(meta, TwoDomains().next()[domain]), g_pre(meta, stream[domain]))
        for domain, weight in TwoDomains.weights.items()
    )
    assert meta(list(stream.values()))["value"] == pytest.approx(float(expected), rel=1e-4)


def test_rows_of_a_domain_are_collected_over_micro_batches():
    meta, align = make(True, "cosine"), Align("cosine")
    of_domain = {"math": random_batch(3, seed=1, domain="math"), "code": random_batch(2, seed=2, domain="code")}
    expected = sum(
        weight * align(g_down(meta, TwoDomains().next()[domain]), g_pre(meta, of_domain[domain].rows([0, 1])))
        for domain, weight in TwoDomains.weights.items()
    )
    math, code = of_domain.values()
    stream = [math.rows([0]), code, math.rows([1]), math.rows([2])]  # of which two rows a domain are asked for
    assert meta(stream)["value"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_the_weighted_sum_is_one_gradient_against_any_rows(kind):
    meta = make(False, kind)
    stream = [random_batch(2, seed=1, domain="law")]
    parts = {domain: g_down(meta, batch) for domain, batch in TwoDomains().next().items()}
    total = {n: sum(TwoDomains.weights[d] * g[n] for d, g in parts.items()) for n in meta.subset}
    expected = Align(kind)(total, g_pre(meta, stream[0]))
    assert meta(stream)["value"] == pytest.approx(float(expected), rel=1e-4)


def test_a_domain_that_the_batch_lacks_is_left_out():
    meta = make(True, "cosine")
    only = [random_batch(2, seed=1, domain="code")]
    expected = Align("cosine")(g_down(meta, TwoDomains().next()["code"]), g_pre(meta, only[0]))
    assert meta(only)["value"] == pytest.approx(float(expected), rel=1e-4)
    assert make(True, "cosine")([random_batch(2, seed=1, domain="law")]) == {}


def test_a_process_without_rows_of_a_domain_takes_part_with_rows_that_do_not_count(monkeypatch):
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda weight: (weight + 8.0) / 2)  # another process has some
    batch, share = make(True, "cosine")._meta_batch([random_batch(3, 30, domain="law")], "math")
    assert share == 0
    assert batch.ids_BT.shape == (2, 24)
    assert 0 < batch.weight < 1e-15


@pytest.mark.parametrize("construction", [None, OneHot()])
def test_the_direction_of_matched_domains_is_the_weighted_sum_of_their_own(construction):
    meta, align = make(True, "cosine", construction), Align("cosine")
    stream = {"math": random_batch(2, seed=1, domain="math"), "code": random_batch(2, seed=2, domain="code")}
    own = {
        domain: align.direction(g_down(meta, TwoDomains().next()[domain]), g_pre(meta, batch))
        for domain, batch in stream.items()
    }
    meta(list(stream.values()))
    for n, u in meta.direction.items():
        expected = sum(weight * own[domain][n] for domain, weight in TwoDomains.weights.items())
        torch.testing.assert_close(u, expected, rtol=1e-3, atol=1e-5)


def test_in_a_judgement_a_domain_counts_by_its_weight_however_many_pairs_it_has():
    strength = Strength(next=0)
    meta = make(True, "cosine", ExactTask(0.02, 0.15, strength, lambda batch, state: None))
    feedback = {"math": random_batch(1, seed=11, domain="math"), "code": random_batch(3, seed=12, domain="code")}
    meta.strength, meta.feedback.next = strength, lambda: feedback
    meta([random_batch(2, seed=1, domain="math"), random_batch(2, seed=2, domain="code")])
    (seen,) = strength.judgements
    weights = {"math": 0.75 * 8 / 2, "code": 0.25 * 8 / 6}  # of 8 pairs, 2 and 6
    expected = [
        weights[domain] * float(inner(g, meta.direction, None) / norm(g))
        for domain, batch in feedback.items()
        for g in (g_down(meta, pair) for pair in batch.apart())
    ]
    assert len(expected) == 8
    assert seen.agreement == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_random_feedback_gives_each_domain_a_direction_of_its_own():
    meta = make(True, "cosine")
    meta.random_seed = 3
    with meta.learner.meta_mode():
        first, again = meta.feedback_gradients(), meta.feedback_gradients()
        meta.updates = 1
        later = meta.feedback_gradients()
    cosine = Align("cosine")
    assert float(cosine(first["math"], again["math"])) == pytest.approx(1)
    for other in (first["code"], later["math"]):
        assert abs(float(cosine(first["math"], other))) < 0.1
    for domain, batch in TwoDomains().next().items():
        assert float(norm(first[domain])) == pytest.approx(float(norm(g_down(meta, batch))), rel=1e-5)


def test_the_evaluator_is_the_mean_answer_nll():
    learner = LanguageLearner(tiny_model().eval())
    batch = random_batch()
    state = learner.forward(batch)
    plain = torch.nn.functional.cross_entropy(all_logits(state), batch.targets_N)
    at = {n: p.detach() for n, p in learner.named_parameters()}
    torch.testing.assert_close(learner.evaluate(batch, at), plain)
    task: Task = OneHot().targets(batch, state.detach())
    torch.testing.assert_close(learner.loss(state, task), plain)
