"""Feedback of several domains, of which two processes hold different ones at the same time."""

from __future__ import annotations

import pytest
import torch
from distributed.processes import together
from models import random_batch, tiny_model

from vpretrain import distributed
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.products import like
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import gradient, inner, jvp, norm

pytestmark = pytest.mark.distributed
DOMAINS = {"math": random_batch(2, seed=11, domain="math"), "code": random_batch(2, seed=12, domain="code")}


class OneDomainEach:
    """Four pairs of one domain for each process."""

    weights = {"math": 0.75, "code": 0.25}  # noqa: RUF012

    def next(self):
        domain = list(DOMAINS)[distributed.rank()]
        return {domain: DOMAINS[domain]}


def meta_update(parallel):
    learner = LanguageLearner(tiny_model().eval(), parallel=parallel)
    return MetaUpdate(
        learner=learner, construction=OneHot(), feedback=OneDomainEach(), engine=jvp, kind="cosine",
        subset=alignment_subset(learner.module, "last-1"), part={"rows": 2, "length": 24}, matched=True, lr=1e-3,
        clip_norm=1.0,
    )  # fmt: skip


def direction(theta):
    generator = torch.Generator().manual_seed(0)
    return {name: like(torch.randn(theta[name].shape, generator=generator), theta[name]) for name in sorted(theta)}


def judged(parallel):
    """|G| and <G, u> of every turn or pair."""
    meta = meta_update(parallel)
    theta = meta.theta_at()
    with meta.learner.meta_mode():
        return meta.judge.along(0, theta, direction(theta), question=0)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_each_pair_of_a_judgement_counts_by_its_own_domain(parallel):
    meta = meta_update("ddp")
    theta = meta.theta_at()
    u, weights = direction(theta), {"math": 1.5, "code": 0.5}  # half of the eight pairs each
    with meta.learner.meta_mode():
        G = {
            domain: [gradient(lambda at, pair=pair: meta.learner.evaluate(pair, at), theta) for pair in batch.apart()]
            for domain, batch in DOMAINS.items()
        }
    if parallel == "ddp":
        expected = [(float(norm(g)), weights[d] * float(inner(g, u, None))) for d, of in G.items() for g in of]
    else:
        means = [
            {n: (1.5 * math[n] + 0.5 * code[n]) / 2 for n in theta} for math, code in zip(*G.values(), strict=True)
        ]
        expected = [(float(norm(g)), float(inner(g, u, None))) for g in means] * 2  # a second batch makes eight rounds
    for found in together(2, judged, parallel):
        for ours, theirs in zip(zip(*found, strict=True), expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
