"""Judge a tilt by feedback that gave no direction yet; `strength` says what is asked, and what follows from the answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.method.losses import detached, feedback_loss, stream_loss
from vpretrain.method.noise import noise_of
from vpretrain.method.products import Products, Scaled
from vpretrain.method.protocols import (
    AnyBatch,
    Construction,
    Feedback,
    Learner,
    Parameters,
    Targets,
    TiltedConstruction,
)
from vpretrain.method.strength import Judgement

Metric = Callable[[Iterable[str]], Mapping[str, Tensor] | None]
"""AdamW's preconditioner P over the named parameters; None while it has no statistics."""

# Least number of measurements for each question: of single feedback pairs; over shards, of rounds of a pair per process.
PAIRS = (8, 4)
_MOST = 8  # pairs of the second one, unless there are more domains; the first uses a feedback batch whole
_TINY = torch.finfo(torch.float32).tiny


class Judge:
    """Ask of feedback pairs whether there is a direction, and how far the tilted task helps.

    Args:
        learner: theta, read only.
        construction: the one that tilts; only the second question uses it.
        feedback: D_fb, from which each question takes the next pairs.
        random_seed: of the random-feedback control, in which noise takes the place of the gradients; None in other arms.
    """

    def __init__(
        self, learner: Learner, construction: Construction, feedback: Feedback, random_seed: int | None
    ) -> None:
        self.learner, self.construction, self.feedback = learner, construction, feedback
        self.random_seed = random_seed

    def __call__(
        self,
        update: int,
        direction: Parameters,
        batch: AnyBatch,
        rank_weight: float,
        in_doubt: Callable[[Judgement], bool],
        metric: Metric | None,
    ) -> Judgement | None:
        """Return the answers; None if a verifier has nothing to tell. Call in the learner's meta mode.

        Args:
            update: the number of the meta update, which seeds the noise.
            direction: u, over the parameters of the tilt.
            batch: of the stream, for the gradients of both tasks.
            rank_weight: its weight relative to the mean over processes.
            in_doubt: whether, after the answers to the first question, the second is asked.
            metric: returns P; None for the identity.
        """
        seen = self.along(update, detached(self.learner, direction), direction, question=0)
        if not seen:
            return None
        lengths, along = seen
        # Each pair at |G| = 1, so that a few long gradients do not stand for all. Rank 0's numbers: all processes must ask
        # the same questions, and use the same strength.
        agreement = [x / max(length, _TINY) for x, length in zip(along, lengths, strict=True)]
        judgement = distributed.broadcast(Judgement(agreement))
        if in_doubt(judgement):
            judgement = distributed.broadcast(self._with_gain(judgement, update, batch, rank_weight, metric))
        return judgement

    def _with_gain(
        self, judgement: Judgement, update: int, batch: AnyBatch, rank_weight: float, metric: Metric | None
    ) -> Judgement:
        """Measure over all parameters, too, how far the tilted task helps."""
        theta = detached(self.learner, (n for n, _ in self.learner.named_parameters()))
        P = metric(theta) if metric is not None else None
        base, tilted = cast(TiltedConstruction, self.construction).ends()

        def visit(products: Scaled, targets: Targets, minus: Targets | None = None) -> None:
            loss = stream_loss(self.learner, self.construction, batch, rank_weight, theta, targets, minus)
            self.learner.visit_gradient(loss, theta, products.add, own=False)

        g_base = Scaled(theta, P)
        visit(g_base, base)
        # d = g_pre(q*) - g_base, from one backward pass through the difference of the losses.
        d = Scaled(theta, P, g_base.held)
        visit(d, tilted, minus=base)
        # C = |g_base|_P^2, square = |g_base|^2, F = |d|_P^2, E = <g_base, P d>
        (C, square), (F, _, E) = g_base(), d()
        C = max(C, _TINY)
        seen = self.along(update, theta, g_base.held, d.held, question=1)
        if not seen:
            return judgement
        lengths, *along = seen
        # A and B at |g_base|_P = 1 and a mean |G| of 1; |g_base| / |g_base|_P removes the scale of P, so that judgements can
        # be pooled.
        unit = C / math.sqrt(square) * max(fmean(lengths), _TINY) if square else 1.0
        a, b = ([x / unit for x in of_pairs] for of_pairs in along)
        return Judgement(judgement.agreement, a, b, E / C, F / C)

    def along(self, update: int, theta: Parameters, *others: Parameters, question: int) -> list[tuple[float, ...]]:
        """Return |G|, and <G, v> for each v, of the next feedback's pairs in all processes, as many as the question takes.

        The list is empty if a verifier has nothing to tell before they are found.

        Each process takes the gradients of its own pairs. Where theta is sharded, all processes go backward together, and G is
        the mean over one pair from each, weighted by their domains.
        """
        found: list[tuple[str, AnyBatch]] = []
        # Over shards a round of pairs is one number, and fewer numbers than PAIRS would show no error.
        number_of = sum if self.learner.has_own_gradient else min
        while (
            number_of(counts_of_ranks := distributed.all_gather(len(found))) < PAIRS[question] or 0 in counts_of_ranks
        ):
            if not (drawn := self.feedback.next()):
                return []
            found += [(domain, pair) for domain, batch in drawn.items() for pair in batch.apart()]
        if question == 1 and sum(counts_of_ranks) > (most := max(_MOST, len(self.feedback.weights))):
            each = -(-most // distributed.size())
            if not self.learner.has_own_gradient:
                each = max(each, PAIRS[question])
            found = in_turn(found, first=each * distributed.rank())[:each]
        # A domain counts by its weight, however many of the pairs are its own.
        domains_of_ranks = distributed.all_gather([domain for domain, _ in found])
        counts = Counter(itertools.chain(*domains_of_ranks))
        weights = {domain: self.feedback.weights[domain] * counts.total() / n for domain, n in counts.items()}
        seen = []
        # All processes make equally many passes, since passes over shards are collective; those with fewer pairs repeat some.
        for turn in range(max(map(len, domains_of_ranks))):
            _, pair = found[turn % len(found)]
            weights_of_turn = [weights[domains[turn % len(domains)]] for domains in domains_of_ranks]
            own = weights_of_turn[distributed.rank()]
            weight = own if self.learner.has_own_gradient else fmean(weights_of_turn)
            number = distributed.rank() + turn * distributed.size()
            noise = noise_of(self.random_seed, update, 1 + question + len(PAIRS) * number)
            products = Products(*others, noise=noise)
            loss = feedback_loss(self.learner, pair, own / weight)
            self.learner.visit_gradient(loss, theta, products.add, own=True)
            square, *along = products()
            seen.append((math.sqrt(square), *(weight * product for product in along)))
        if self.learner.has_own_gradient:  # without the repeated pairs
            seen = list(itertools.chain(*distributed.all_gather(seen[: len(found)])))
        return list(zip(*seen, strict=True))


def in_turn(pairs: Sequence[tuple[str, AnyBatch]], *, first: int) -> list[tuple[str, AnyBatch]]:
    """Return pairs, each with its domain, so that domain follows domain, beginning with the `first` of them."""
    of_domains: dict[str, list[tuple[str, AnyBatch]]] = {}
    for domain, pair in pairs:
        of_domains.setdefault(domain, []).append((domain, pair))
    names = list(of_domains)
    begin = first % len(names)
    turns = itertools.zip_longest(*(of_domains[name] for name in names[begin:] + names[:begin]))
    return [one for turn in turns for one in turn if one is not None]
