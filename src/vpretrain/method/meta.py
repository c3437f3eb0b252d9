"""Line 2 of Algorithm 1: what feedback changes about the task, a new value direction, the designer, the strength of the tilt.

This object holds g_down. It has the learner as a function, the designer and the designer's optimizer; it has no
reference to the learner's optimizer, and nothing it computes reaches the learner except through the task.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, cast

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.errors import NonFinite
from vpretrain.method.products import Products, Scaled, like
from vpretrain.method.protocols import Construction, Feedback, Learner, Parameters, Task, TiltedConstruction
from vpretrain.method.strength import Judgement, Strength
from vpretrain.method.value import Align, Engine, MetaProblem, Value, mean, norm
from vpretrain.timing import phase

Metric = Callable[[Iterable[str]], Mapping[str, Tensor] | None]
"""AdamW's preconditioner P over the named parameters; None while it has no statistics."""

_JUDGES = 4  # pairs, at least; more if a feedback batch has more
_TINY = torch.finfo(torch.float32).tiny


class MetaUpdate:
    """Raises V(phi) - R(phi) by one optimizer step (Eq 26), domain by domain (Eq 46) or on one weighted sum (Eq 18).

    Without phi it only finds the value direction u; with a strength that chooses itself it also judges, now and then, how much
    of the tilted task to take.

    Args:
        learner: theta, read only.
        construction: c_phi.
        feedback: D_fb.
        subset: names of the parameters in S, see `alignment_subset`.
        engine: one of `vpretrain.method.value.ENGINES`; for constructions with phi.
        kind: Align, `dot` or `cosine`.
        penalty: c of a dot's norm penalty, see `Align`.
        part: how much of the learner's batch a domain's g_pre is computed on, as `Batch.restrict` takes it.
        matched: align each domain with stream rows of the same domain.
        feedback_every: meta updates that one feedback batch serves.
        tilts: names of the parameters that `direction` keeps; None for all of S.
        strength: how much of the tilted task the learner gets; None where that is not asked.
        random_seed: if given, g_down is replaced by Gaussian noise of the same norm: the random-feedback control.
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
        self.kept: dict[str, Parameters] = {}  # g_down by domain, where a later update needs it
        self.clip_norm, self.random_seed = clip_norm, random_seed
        self.strength = strength
        self.phi = list(construction.parameters())
        self.optimizer = torch.optim.AdamW(self.phi, lr=lr, weight_decay=0.0) if self.phi else None
        self.direction: Parameters | None = None
        self.updates = 0

    def __call__(self, batches: Sequence[Any], metric: Metric | None = None, progress: float = 0.0) -> dict[str, float]:
        """One meta update on (a part of) the learner's next batches.

        Args:
            batches: the micro-batches of the coming learner step.
            metric: gives P for the optimizer-aware value, and for judging the strength; None for the identity.
            progress: the share of the run that is done; late in it the strength is not judged any more.

        Returns:
            What happened, as numbers: |g_down|; the value, R and the designer's gradient norm where there is a designer; the
            strength where it was judged. Nothing where there was nothing to do, or where P is still to come: at the start of
            training a direction without it leads astray.
        """
        idle = self.strength is not None and self.strength.idle(self.updates, progress)
        P = None if idle or metric is None else metric(self.subset)
        early = self.updates == 0 and metric is not None and P is None  # before the learner's first step
        if idle or early:
            self.updates += 1
            return {}
        judged = self.strength is not None and self.strength.due(self.updates, progress)
        # The learner's own pass is not held in memory beside a judgement's.
        ahead = contextlib.nullcontext() if judged else self.learner.looking_ahead(batches[0])
        with self.learner.meta_mode(), ahead:
            record = self._update(batches, P)
            if judged:
                record |= self._judge(batches, metric)
        self.updates += 1
        return record

    @contextlib.contextmanager
    def rehearsal(self, batches: Sequence[Any]) -> Iterator[None]:
        """Find a direction as a meta update does, and hold it, with the whole of the tilt, until the end of the context.

        Afterwards all is as before but the feedback's cursor.
        """
        kept = self.direction, self.kept
        share = 0.0 if self.strength is None else self.strength.share
        try:
            with self.learner.meta_mode():
                self._find(batches, None)
            if self.strength is not None and not self.strength.fixed:
                self.strength.share = 1.0
            yield
        finally:
            self.direction, self.kept = kept
            if self.strength is not None:
                self.strength.share = share

    def _find(
        self, batches: Sequence[Any], metric: Mapping[str, Tensor] | None
    ) -> tuple[list[tuple[float, Value]], dict[str, float]]:
        """A new direction; the values by which the designer learns, none where there is no designer; |g_down|."""
        valued: list[tuple[float, Value]] = []
        if self.phi:
            valued, g_down_norm = self.values(batches, metric)
            directions = [(weight, v.direction) for weight, v in valued]
        else:
            directions, g_down_norm = self._directions(batches, metric)
        if directions:
            self.direction = {n: torch.stack([weight * u[n] for weight, u in directions]).sum(0) for n in self.tilts}
        return valued, {"g_down_norm": g_down_norm} if directions else {}

    def _update(self, batches: Sequence[Any], metric: Mapping[str, Tensor] | None) -> dict[str, float]:
        valued, record = self._find(batches, metric)
        if record:
            _refuse("g_down", record["g_down_norm"])
        if self.optimizer is not None and valued:
            record["value"] = float(mean([(w, v.value) for w, v in valued]))
            _refuse("value", record["value"])
            units = [self.construction.unit(v.surrogate / (v.share or 1.0), v.task) for _, v in valued]
            surrogate = mean([(w, v.surrogate / unit) for (w, v), unit in zip(valued, units, strict=True)])
            regulariser = mean([(w, v.share * self.construction.regulariser(v.task)) for w, v in valued])
            record["regulariser"] = distributed.all_reduce_mean(float(regulariser.detach()))
            if (regulariser - surrogate).requires_grad:  # at strength 0 phi changes nothing
                record["designer_grad_norm"] = self._step(regulariser - surrogate)
        return record

    def _directions(
        self, batches: Sequence[Any], metric: Mapping[str, Tensor] | None
    ) -> tuple[list[tuple[float, Parameters]], float]:
        """The (domain weight, u) of a construction without phi, and |g_down|: no tangent, and for a dot product no task.

        A cosine's u is that at the base task: at the tilted one it would depend on the u before it.
        """
        problems, g_down_norm = self.problems(batches, metric)
        found = []
        for p in problems:
            loss = self._pre(p.batch, p.share, p.theta_S, self._base())
            g_pre = None if p.align.linear else self.learner.gradient(loss, p.theta_S)
            found.append((p.weight, p.align.direction(p.g_down, g_pre)))
        return found, g_down_norm

    def _base(self) -> Callable[[Any, Any], Task]:
        """The targets of the base task, where the construction tilts it."""
        if self.strength is None:
            return self.construction.targets
        return cast(TiltedConstruction, self.construction).ends()[0]

    def problems(
        self, batches: Sequence[Any], metric: Mapping[str, Tensor] | None = None
    ) -> tuple[list[MetaProblem], float]:
        """What is to be aligned, domain by domain; and |g_down|. Call in meta mode."""
        with phase("meta: feedback gradient"):
            g_down = self._feedback_gradients()
        weights = dict(self.feedback.weights)
        g_down_norm = float(sum(weights[domain] * norm(g) for domain, g in g_down.items()))
        aligned: list[tuple[float, str | None, Parameters]]
        if self.matched and len(g_down) > 1:
            aligned = [(weights[domain], domain, g) for domain, g in g_down.items()]
        else:
            total = {n: torch.stack([weights[d] * g[n] for d, g in g_down.items()]).sum(0) for n in self.subset}
            aligned = [(1.0, None, total)]
        align, theta_S, found = Align(self.kind, metric, self.penalty), self.theta_at(), []
        for weight, domain, g in aligned:
            batch, share = self._meta_batch(batches, domain)
            if batch is not None:
                found.append(MetaProblem(self.learner, self.construction, batch, theta_S, g, align, share, weight))
        return found, g_down_norm

    def theta_at(self, names: Iterable[str] | None = None) -> Parameters:
        """theta_S, or theta over other names."""
        chosen = set(self.subset if names is None else names)
        return {n: p.detach() for n, p in self.learner.named_parameters() if n in chosen}

    def _judge(self, batches: Sequence[Any], metric: Metric | None) -> dict[str, float]:
        """How much of the tilted task serves, over all parameters, on the coming feedback, which has given no direction.

        The direction is the one that was just found. An older one has been followed for r steps, is used up, and can look
        harmful where the next one helps.
        """
        strength = self.strength
        if strength is None or self.direction is None:
            return {}
        batch, share = self._meta_batch(batches, None)
        if batch is None:
            return {}
        at = self.theta_at(n for n, _ in self.learner.named_parameters())
        P = metric(at) if metric is not None else None
        with phase("meta: judgement"):
            base, tilted = cast(TiltedConstruction, self.construction).ends()
            g_base = Scaled(at, P)
            self.learner.visit_gradient(self._pre(batch, share, at, base), at, g_base.add, own=False)
            d = Scaled(at, P, g_base.held)
            self.learner.visit_gradient(self._pre(batch, share, at, tilted, base), at, d.add, own=False)
            (C, square), (F, _, E) = g_base(), d()
            C = max(C, _TINY)
            *along, agreement = self._along(at, g_base.held, d.held, self.direction)
            a, b = ([math.sqrt(square) / C * x for x in of_pairs] for of_pairs in along)
            length = max(float(norm(self.direction)), _TINY)
            agreed = [x / length for x in agreement]
        strength.judge(self.updates, distributed.broadcast(Judgement(a, b, E / C, F / C, agreed)))
        return {"strength": strength.share, "radius": strength.radius}

    def _along(self, at: Parameters, *others: Parameters) -> list[tuple[float, ...]]:
        """<G, v> for some v, for each pair of the next feedback, in all processes; the mean |G| is 1.

        Each process has its own. Where theta lies in shards, all go backward together, and a G is the mean of their pairs.
        """
        found: list[tuple[str, Any]] = []
        while sum(distributed.all_gather(len(found))) < _JUDGES:
            found += [(domain, pair) for domain, batch in self.feedback.next().items() for pair in batch.apart()]
        counts = Counter(itertools.chain(*distributed.all_gather([domain for domain, _ in found])))
        weights = {domain: self.feedback.weights[domain] * counts.total() / n for domain, n in counts.items()}
        seen = []
        for turn in range(max(distributed.all_gather(len(found)))):
            domain, pair = found[turn % len(found)]
            noise = self._noise(self.updates, 1 + distributed.rank() + turn * distributed.size())
            products = Products(*others, noise=noise)
            self.learner.visit_gradient(self._down(pair), at, products.add, own=True)
            square, *along = products()
            seen.append((math.sqrt(square), *(weights[domain] * product for product in along)))
        if self.learner.has_own_gradient:
            seen = list(itertools.chain(*distributed.all_gather(seen[: len(found)])))
        lengths, *along_others = zip(*seen, strict=True)
        unit = max(fmean(lengths), _TINY)
        return [tuple(x / unit for x in of_pairs) for of_pairs in along_others]

    def _pre(
        self,
        batch: Any,
        share: float,
        at: Parameters,
        targets: Callable[[Any, Any], Task],
        minus: Callable[[Any, Any], Task] | None = None,
    ) -> Callable[[Parameters], Tensor]:
        """L_pre on a batch, minus that by other targets, as a function of the parameters; in the learner's own precision."""
        inputs = self.learner.prepare(self.construction.inputs(batch), at)

        def loss(parameters: Parameters) -> Tensor:
            with self.learner.autocast():
                state = self.learner.forward(inputs, parameters)
                found = self.learner.loss(state, targets(inputs, state.detach()).detach())
                if minus is not None:
                    found = found - self.learner.loss(state, minus(inputs, state.detach()).detach())
                return share * found

        return loss

    def _down(self, batch: Any, share: float = 1.0) -> Callable[[Parameters], Tensor]:
        """L_down as a function of some parameters, in the learner's own precision, which is enough for a direction."""

        def loss(parameters: Parameters) -> Tensor:
            with self.learner.autocast():
                return share * self.learner.evaluate(batch, parameters)

        return loss

    def _noise(self, update: int, number: int) -> torch.Generator | None:
        """Of the random-feedback control."""
        if self.random_seed is None:
            return None
        return torch.Generator().manual_seed(self.random_seed * 1_000_003 + update + number * 1_000_000_007)

    def _feedback_gradients(self) -> dict[str, Parameters]:
        """g_down by domain: of the next feedback batch, or what there is from the last one."""
        if self.kept and self.updates % self.feedback_every:
            return self.kept
        noise, theta_S = self._noise(self.updates, 0), self.theta_at()
        g_down = {}
        for domain, batch in self.feedback.next().items():
            share = batch.weight / distributed.all_reduce_mean(batch.weight)
            g = self.learner.gradient(self._down(batch, share), theta_S)
            g_down[domain] = g if noise is None else noise_like(g, noise)
        if self.feedback_every > 1:
            self.kept = g_down
        return g_down

    def values(
        self, batches: Sequence[Any], metric: Mapping[str, Tensor] | None = None
    ) -> tuple[list[tuple[float, Value]], float]:
        """The (domain weight, value) pairs on these batches, and |g_down|. Call in the learner's meta mode."""
        problems, g_down_norm = self.problems(batches, metric)
        with phase("meta: tangent"):
            return [(problem.weight, self.engine(problem)) for problem in problems], g_down_norm

    def _meta_batch(self, batches: Sequence[Any], domain: str | None) -> tuple[Any, float]:
        """A few rows of the first micro-batch that has any of the domain, and their share of what all processes have found.

        A process that has none, where another has, goes through the motions with some batch of no weight.
        """
        restricted = (batch.restrict(domain=domain, **self.part) for batch in batches)
        found = next((batch for batch in restricted if batch is not None), None)
        weight = 0.0 if found is None else found.weight
        whole = distributed.all_reduce_mean(weight)
        return (None, 0.0) if whole == 0 else (batches[0] if found is None else found, weight / whole)

    def _step(self, objective: Tensor) -> float:
        assert self.optimizer is not None
        with phase("meta: designer gradient"):
            gradients = distributed.all_reduce_mean(
                torch.autograd.grad(objective, self.phi, allow_unused=True, materialize_grads=True)
            )
        with phase("meta: designer optimizer"):
            for parameter, g in zip(self.phi, gradients, strict=True):
                parameter.grad = g
            grad_norm = float(torch.nn.utils.clip_grad_norm_(self.phi, self.clip_norm))
            _refuse("designer's gradient", grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return grad_norm


def noise_like(g: Parameters, noise: torch.Generator) -> Parameters:
    """Gaussian noise with a gradient's norm: the random-feedback control."""
    drawn = {name: like(torch.randn(part.shape, generator=noise), part) for name, part in g.items()}
    scale = norm(g) / norm(drawn)
    return {name: scale * part for name, part in drawn.items()}


def _refuse(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise NonFinite(f"the {what} is {number}", "lower designer.lr or optimizer.lr, or look at the feedback")
