"""Line 2 of Algorithm 1: update the task from feedback (the value direction, the designer, the strength of the tilt).

`MetaUpdate` holds g_down. It has the learner as a function, the designer and the designer's optimizer; it has no
reference to the learner's optimizer, and nothing it computes reaches the learner except through the task.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Literal, cast

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.errors import NonFinite
from vpretrain.method.products import Products, Scaled, like
from vpretrain.method.protocols import (
    AnyBatch,
    Construction,
    Feedback,
    Learner,
    Parameters,
    Targets,
    TiltedConstruction,
)
from vpretrain.method.strength import Judgement, Strength
from vpretrain.method.value import Align, Engine, MetaProblem, Value, mean, norm
from vpretrain.timing import phase

Metric = Callable[[Iterable[str]], Mapping[str, Tensor] | None]
"""AdamW's preconditioner P over the named parameters; None while it has no statistics."""

NOTHING_TOLD = (
    "the attempts at each problem agree, so that there is no gradient of the reward: set feedback.reward=solution"
)
PAIRS = (8, 4)  # least number of feedback pairs for each question of a judgement
_MOST = 8  # pairs of the second one, unless there are more domains; the first uses a feedback batch whole
_TINY = torch.finfo(torch.float32).tiny


class MetaUpdate:
    """Raise V(phi) - R(phi) by one optimizer step (Eq 26), domain by domain (Eq 46) or on one weighted sum (Eq 18).

    Without phi it only finds the value direction u. With an automatic strength it also judges, from time to time, how much of
    the tilted task to use.

    Args:
        learner: theta, read only.
        construction: c_phi.
        feedback: D_fb.
        subset: names of the parameters in S, see `alignment_subset`.
        engine: one of `vpretrain.method.value.ENGINES`; for constructions with phi.
        kind: Align, `dot` or `cosine`.
        penalty: c of the dot product's norm penalty, see `Align`.
        part: size of the part of the learner's batches that a domain's g_pre is computed on, as arguments of `Batch.restrict`.
        matched: whether each domain is aligned with stream rows of the same domain.
        lr, clip_norm: of the designer's AdamW.
        feedback_every: meta updates per feedback batch.
        tilts: names of the parameters over which `direction` is kept, if a designer learns over a wider S; None for all of S.
        strength: the weight of the tilted task in the learner's task; None for a construction that does not tilt the base task.
        random_seed: if given, g_down is replaced by Gaussian noise of the same norm: the random-feedback control.

    Examples:
        A recipe's own, for the first micro-batches of its stream:

        >>> from vpretrain.language.assemble import assemble
        >>> parts = assemble(load_recipe("recipe.yaml", ["value.strength=1"]))
        >>> isinstance(parts.meta, MetaUpdate)
        True
        >>> list(parts.meta(parts.stream.next()))
        ['g_down_norm']
    """

    def __init__(
        self,
        *,
        learner: Learner,
        construction: Construction,
        feedback: Feedback,
        subset: Sequence[str],
        engine: Engine,
        kind: Literal["dot", "cosine"],
        part: Mapping[str, int],
        matched: bool,
        lr: float,
        clip_norm: float,
        penalty: float = 0.0,
        feedback_every: int = 1,
        tilts: Sequence[str] | None = None,
        strength: Strength | None = None,
        random_seed: int | None = None,
    ) -> None:
        self.learner, self.construction, self.feedback = learner, construction, feedback
        self.subset = tuple(subset)
        self.tilts = self.subset if tilts is None else tuple(tilts)
        self.engine, self.kind, self.penalty = engine, kind, penalty
        self.part, self.matched = part, matched
        self.feedback_every = feedback_every
        self.kept: dict[str, Parameters] = {}  # g_down by domain, if later updates reuse it
        self.clip_norm, self.random_seed = clip_norm, random_seed
        self.strength = strength
        self.phi = list(construction.parameters())
        self.optimizer = torch.optim.AdamW(self.phi, lr=lr, weight_decay=0.0) if self.phi else None
        self.direction: Parameters | None = None
        self.no_feedback = False  # whether a verifier gave no gradient in the last update
        self.unmatched = False  # whether the last update found no stream row to align the feedback with
        self.updates = 0

    def __call__(
        self, batches: Sequence[AnyBatch], metric: Metric | None = None, progress: float = 0.0
    ) -> dict[str, float]:
        """Make one meta update on (a part of) the learner's next batches.

        Args:
            batches: the micro-batches of the coming learner step.
            metric: returns P for the optimizer-aware value, and for judging the strength; None for the identity.
            progress: the fraction of the run that is done; late in the run the strength is no longer judged.

        Returns:
            Numbers for the log: |g_down|; the value, R and the designer's gradient norm if there is a designer; strength and
            radius if they were judged. Empty if there was nothing to do, or if P does not exist yet: at the start of training a
            direction without it is misleading.
        """
        idle = self.strength is not None and self.strength.idle(self.updates, progress)
        P = None if idle or metric is None else metric(self.subset)
        # Before the learner's first step AdamW has no statistics, and a direction without P would be followed for r steps.
        early = self.updates == 0 and metric is not None and P is None
        if idle or early:
            self.updates += 1  # counts too: judgements are scheduled by the number of the update
            return {}
        judged = self.strength is not None and self.strength.due(self.updates, progress)
        # Not before a judgement: the learner's own pass would be held in memory beside the judgement's passes.
        ahead = contextlib.nullcontext() if judged else self.learner.looking_ahead(batches[0])
        with self.learner.meta_mode(), ahead:
            values, record = self._find(batches, P)
            if values and self.optimizer is not None:
                record |= self._train(values, self.optimizer)
            if judged:  # after the update, since the new direction is what is judged
                record |= self._judge(batches, metric)
        self.updates += 1
        return record

    @contextlib.contextmanager
    def dry_run(self, batches: Sequence[AnyBatch]) -> Iterator[None]:
        """Find a direction as a meta update does, and keep it, with the full tilt, until the end of the context.

        Afterwards everything is restored except the feedback's cursor.
        """
        kept = self.direction, self.kept
        beta = 0.0 if self.strength is None else self.strength.beta
        try:
            with self.learner.meta_mode():
                self._find(batches, None)  # before the learner's first step there is no metric
            # An automatic strength begins at 0, at which a dry run would leave out the cost of the tilt.
            if self.strength is not None and not self.strength.fixed:
                self.strength.beta = 1.0
            yield
        finally:
            self.direction, self.kept = kept
            if self.strength is not None:
                self.strength.beta = beta

    def _find(
        self, batches: Sequence[AnyBatch], metric: Mapping[str, Tensor] | None
    ) -> tuple[list[tuple[float, Value]], dict[str, float]]:
        """Find a new direction; return the values that train the designer (empty without phi), and |g_down| for the log.

        Without phi this takes no tangent, and for a dot product no task. A cosine's u is then taken at the base task; at the
        tilted one it would depend on the previous u.
        """
        g_down = self.feedback_gradients()
        problems = self.problems(g_down, batches, metric) if g_down else []
        self.no_feedback, self.unmatched = not g_down, bool(g_down) and not problems
        if not problems:  # a verifier had nothing to tell, or no stream row could be aligned: the old direction stays
            return [], {}
        values = self.values(problems) if self.phi else []
        directions = [(weight, value.direction) for weight, value in values]
        for p in problems if not self.phi else ():
            g_pre = None
            if not p.align.linear:
                g_pre = self.learner.gradient(self._pre(p.batch, p.rank_weight, p.theta_S, self._base()), p.theta_S)
            directions.append((p.weight, p.align.direction(p.g_down, g_pre)))
        self.direction = {n: torch.stack([weight * u[n] for weight, u in directions]).sum(0) for n in self.tilts}
        g_down_norm = self.norm_of(g_down)
        _refuse("g_down", g_down_norm)
        return values, {"g_down_norm": g_down_norm}

    def _train(self, values: Sequence[tuple[float, Value]], optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Update phi by one step on V - R; return numbers for the log."""
        record = {"value": float(mean([(w, v.value) for w, v in values]))}
        _refuse("value", record["value"])
        # The unit is that of the value itself, without this process's weight, which is 0 if it has no rows.
        units = [self.construction.unit(v.surrogate / (v.rank_weight or 1.0), v.task) for _, v in values]
        surrogate = mean([(w, v.surrogate / unit) for (w, v), unit in zip(values, units, strict=True)])
        regulariser = mean([(w, v.rank_weight * self.construction.regulariser(v.task)) for w, v in values])
        record["regulariser"] = distributed.all_reduce_mean(float(regulariser.detach()))
        objective = regulariser - surrogate
        if not objective.requires_grad:  # at strength 0 the task does not depend on phi
            return record
        with phase("meta: designer gradient"):
            # Averaged before clipping, so that all processes make the same step.
            gradients = distributed.all_reduce_mean(
                torch.autograd.grad(objective, self.phi, allow_unused=True, materialize_grads=True)
            )
        with phase("meta: designer optimizer"):
            for parameter, g in zip(self.phi, gradients, strict=True):
                parameter.grad = g
            record["designer_grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.phi, self.clip_norm))
            _refuse("designer's gradient", record["designer_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
        return record

    def _base(self) -> Targets:
        """Return the targets of the base task if the construction tilts it, else the construction's own."""
        if self.strength is None:
            return self.construction.targets
        return cast(TiltedConstruction, self.construction).ends()[0]

    def feedback_gradients(self) -> dict[str, Parameters]:
        """Return g_down by domain, of the next feedback batch or, between batches, of the last one; empty if there is none."""
        if self.kept and self.updates % self.feedback_every:
            return self.kept
        noise, theta_S = self._noise(self.updates, 0), self.theta_at()
        g_down = {}
        with phase("meta: feedback gradient"):
            for domain, batch in self.feedback.next().items():
                # So that the mean of the processes' gradients is the gradient of the whole batch.
                rank_weight = batch.weight / distributed.all_reduce_mean(batch.weight)
                g = self.learner.gradient(self._down(batch, rank_weight), theta_S)
                g_down[domain] = g if noise is None else noise_like(g, noise)
        if self.feedback_every > 1:
            self.kept = g_down
        return g_down

    def norm_of(self, g_down: Mapping[str, Parameters]) -> float:
        """Return |g_down|, the weighted sum over domains."""
        return float(sum(self.feedback.weights[domain] * norm(g) for domain, g in g_down.items()))

    def problems(
        self,
        g_down: Mapping[str, Parameters],
        batches: Sequence[AnyBatch],
        metric: Mapping[str, Tensor] | None = None,
    ) -> list[MetaProblem]:
        """Return the alignment problems, one per matched domain (Eq 46) or one in all (Eq 18)."""
        weights = dict(self.feedback.weights)
        aligned: list[tuple[float, str | None, Parameters]]
        if self.matched and len(weights) > 1:  # even if a verifier had something to tell of one domain alone
            aligned = [(weights[domain], domain, g) for domain, g in g_down.items()]
        else:
            total = {n: torch.stack([weights[d] * g[n] for d, g in g_down.items()]).sum(0) for n in self.subset}
            aligned = [(1.0, None, total)]
        align, theta_S, found = Align(self.kind, metric, self.penalty), self.theta_at(), []
        for weight, domain, g in aligned:
            batch, rank_weight = self._meta_batch(batches, domain)
            if batch is not None:
                found.append(
                    MetaProblem(self.learner, self.construction, batch, theta_S, g, align, rank_weight, weight)
                )
        return found

    def values(self, problems: Sequence[MetaProblem]) -> list[tuple[float, Value]]:
        """Return the (domain weight, value) pairs. Call in the learner's meta mode."""
        with phase("meta: tangent"):
            return [(problem.weight, self.engine(problem)) for problem in problems]

    def theta_at(self, names: Iterable[str] | None = None) -> Parameters:
        """Return theta_S, or theta over other names, detached."""
        chosen = set(self.subset if names is None else names)
        return {n: p.detach() for n, p in self.learner.named_parameters() if n in chosen}

    def _judge(self, batches: Sequence[AnyBatch], metric: Metric | None) -> dict[str, float]:
        """Judge the strength on the next feedback, which gave no direction yet: is there a direction, how far does it help?

        The direction is the one just found. The one before it has been followed for r steps: it is used up, and can look
        harmful although the next one helps.
        """
        strength = self.strength
        if strength is None:
            return {}
        if self.no_feedback:  # else a learner that fails would make attempts for a judgement before every update
            strength.postpone(self.updates)
            return {}
        if self.direction is None:
            return {}
        batch, rank_weight = self._meta_batch(batches, None)
        if batch is None:
            return {}
        with phase("meta: judgement"):
            seen = self._along(self.theta_at(self.direction), self.direction, question=0)
            if not seen:
                strength.postpone(self.updates)
                return {}
            lengths, along = seen
            # Each pair at |G| = 1, so that a few long gradients do not stand for all. Rank 0's numbers: all processes must ask
            # the same questions, and use the same strength.
            agreement = [x / max(length, _TINY) for x, length in zip(along, lengths, strict=True)]
            judgement = distributed.broadcast(Judgement(agreement))
            if strength.in_doubt(judgement):
                judgement = distributed.broadcast(self._with_gain(judgement, batch, rank_weight, metric))
        strength.judge(self.updates, judgement)
        return {"strength": strength.beta, "radius": strength.radius}

    def _with_gain(self, judgement: Judgement, batch: AnyBatch, rank_weight: float, metric: Metric | None) -> Judgement:
        """Measure over all parameters, too, how far the tilted task helps."""
        theta = self.theta_at(n for n, _ in self.learner.named_parameters())
        P = metric(theta) if metric is not None else None
        base, tilted = cast(TiltedConstruction, self.construction).ends()
        g_base = Scaled(theta, P)
        self.learner.visit_gradient(self._pre(batch, rank_weight, theta, base), theta, g_base.add, own=False)
        # d = g_pre(q*) - g_base, from one backward pass through the difference of the losses.
        d = Scaled(theta, P, g_base.held)
        self.learner.visit_gradient(self._pre(batch, rank_weight, theta, tilted, base), theta, d.add, own=False)
        # C = |g_base|_P^2, square = |g_base|^2, F = |d|_P^2, E = <g_base, P d>
        (C, square), (F, _, E) = g_base(), d()
        C = max(C, _TINY)
        seen = self._along(theta, g_base.held, d.held, question=1)
        if not seen:
            return judgement
        lengths, *along = seen
        # A and B at |g_base|_P = 1 and a mean |G| of 1; |g_base| / |g_base|_P removes the scale of P, so that judgements can
        # be pooled.
        unit = C / math.sqrt(square) * max(fmean(lengths), _TINY) if square else 1.0
        a, b = ([x / unit for x in of_pairs] for of_pairs in along)
        return Judgement(judgement.agreement, a, b, E / C, F / C)

    def _along(self, theta: Parameters, *others: Parameters, question: int) -> list[tuple[float, ...]]:
        """Return |G|, and <G, v> for each v, of the next feedback's pairs in all processes, as many as the question takes.

        The list is empty if a verifier has nothing to tell before they are found.

        Each process takes the gradients of its own pairs. Where theta is sharded, all processes go backward together, and G is
        the mean over one pair from each, weighted by their domains.
        """
        found: list[tuple[str, AnyBatch]] = []
        while sum(counts_of_ranks := distributed.all_gather(len(found))) < PAIRS[question] or 0 in counts_of_ranks:
            if not (drawn := self.feedback.next()):
                return []
            found += [(domain, pair) for domain, batch in drawn.items() for pair in batch.apart()]
        if question == 1 and sum(counts_of_ranks) > (most := max(_MOST, len(self.feedback.weights))):
            each = -(-most // distributed.size())
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
            noise = self._noise(self.updates, 1 + question + len(PAIRS) * number)
            products = Products(*others, noise=noise)
            self.learner.visit_gradient(self._down(pair, own / weight), theta, products.add, own=True)
            square, *along = products()
            seen.append((math.sqrt(square), *(weight * product for product in along)))
        if self.learner.has_own_gradient:  # without the repeated pairs
            seen = list(itertools.chain(*distributed.all_gather(seen[: len(found)])))
        return list(zip(*seen, strict=True))

    def _pre(
        self,
        batch: AnyBatch,
        rank_weight: float,
        theta: Parameters,
        targets: Targets,
        minus: Targets | None = None,
    ) -> Callable[[Parameters], Tensor]:
        """Return L_pre on a batch (less L_pre with the targets `minus`) by parameters, in the learner's own precision."""
        inputs = self.learner.prepare_in_own_precision(self.construction.inputs(batch), theta)

        def loss(parameters: Parameters) -> Tensor:
            with self.learner.autocast():
                state = self.learner.forward(inputs, parameters)
                found = self.learner.loss(state, targets(inputs, state.detach()).detach())
                if minus is not None:
                    found = found - self.learner.loss(state, minus(inputs, state.detach()).detach())
                return rank_weight * found

        return loss

    def _down(self, batch: AnyBatch, rank_weight: float = 1.0) -> Callable[[Parameters], Tensor]:
        """Return L_down as a function of some parameters, in the learner's own precision, which is enough for a direction."""

        def loss(parameters: Parameters) -> Tensor:
            with self.learner.autocast():
                return rank_weight * self.learner.evaluate(batch, parameters)

        return loss

    def _noise(self, update: int, number: int) -> torch.Generator | None:
        """Return the generator of the random-feedback control; None in other arms."""
        if self.random_seed is None:
            return None
        # Seeded by update and number, so that a resumed run draws the same noise.
        return torch.Generator().manual_seed(self.random_seed * 1_000_003 + update + number * 1_000_000_007)

    def _meta_batch(self, batches: Sequence[AnyBatch], domain: str | None) -> tuple[AnyBatch, float]:
        """Return the step's first rows of the domain, and their weight relative to the mean over processes.

        A process without such rows, if another has some, takes any rows at weight 0, so that all make the same passes.
        """
        found = batches[0].restrict(domain=domain, more=batches[1:], **self.part)
        weight = 0.0 if found is None else found.weight
        whole = distributed.all_reduce_mean(weight)
        if whole == 0:
            return None, 0.0
        if found is None:
            found = batches[0].with_targets().restrict(domain=None, more=(), **self.part)
        return found, weight / whole


def in_turn(pairs: Sequence[tuple[str, AnyBatch]], *, first: int) -> list[tuple[str, AnyBatch]]:
    """Return pairs, each with its domain, so that domain follows domain, beginning with the `first` of them."""
    of_domains: dict[str, list[tuple[str, AnyBatch]]] = {}
    for domain, pair in pairs:
        of_domains.setdefault(domain, []).append((domain, pair))
    names = list(of_domains)
    begin = first % len(names)
    turns = itertools.zip_longest(*(of_domains[name] for name in names[begin:] + names[:begin]))
    return [one for turn in turns for one in turn if one is not None]


def noise_like(g: Parameters, noise: torch.Generator) -> Parameters:
    """Return Gaussian noise with a gradient's norm, for the random-feedback control."""
    drawn = {name: like(torch.randn(part.shape, generator=noise), part) for name, part in g.items()}
    scale = norm(g) / norm(drawn)
    return {name: scale * part for name, part in drawn.items()}


def _refuse(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise NonFinite(f"the {what} is {number}", "lower designer.lr or optimizer.lr, or look at the feedback")
