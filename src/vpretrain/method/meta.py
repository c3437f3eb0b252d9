"""Line 2 of Algorithm 1: update the task from feedback (the value direction, the designer, the strength of the tilt).

`MetaUpdate` holds g_down. It has the learner as a function, the designer and the designer's optimizer; it has no
reference to the learner's optimizer, and nothing it computes reaches the learner except through the task.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.errors import NonFinite
from vpretrain.method.judgement import Judge, Metric
from vpretrain.method.losses import detached, feedback_loss, stream_loss
from vpretrain.method.noise import noise_like, noise_of
from vpretrain.method.protocols import (
    AnyBatch,
    Construction,
    Feedback,
    Learner,
    Parameters,
    Targets,
    TiltedConstruction,
)
from vpretrain.method.strength import Strength
from vpretrain.method.value import Align, Engine, MetaProblem, Value, mean, norm
from vpretrain.timing import phase

NOTHING_TOLD = (
    "the attempts at each problem agree, so that there is no gradient of the reward: set feedback.reward=solution"
)


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
        self.judge = Judge(learner, construction, feedback, random_seed)
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
            self.kept = {}  # too old for the update after a pause
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
                loss = stream_loss(self.learner, self.construction, p.batch, p.rank_weight, p.theta_S, self._base())
                g_pre = self.learner.gradient(loss, p.theta_S)
            directions.append((p.weight, p.align.direction(p.g_down, g_pre)))
        g_down_norm = self.norm_of(g_down)
        _refuse("g_down", g_down_norm)  # before it is the direction
        self.direction = {n: torch.stack([weight * u[n] for weight, u in directions]).sum(0) for n in self.tilts}
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
        noise, theta_S = noise_of(self.random_seed, self.updates, 0), self.theta_at()
        g_down = {}
        with phase("meta: feedback gradient"):
            for domain, batch in self.feedback.next().items():
                # So that the mean of the processes' gradients is the gradient of the whole batch.
                rank_weight = batch.weight / distributed.all_reduce_mean(batch.weight)
                g = self.learner.gradient(feedback_loss(self.learner, batch, rank_weight), theta_S)
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
        return detached(self.learner, self.subset if names is None else names)

    def _judge(self, batches: Sequence[AnyBatch], metric: Metric | None) -> dict[str, float]:
        """Judge the strength by the next feedback, which gave no direction yet.

        The direction is the one just found. The one before it has been followed for r steps: it is used up, and can look
        harmful although the next one helps.
        """
        strength = self.strength
        if strength is None:
            return {}
        if self.no_feedback:  # else a learner that fails would make attempts for a judgement before every update
            strength.postpone(self.updates)
            return {}
        batch, rank_weight = self._meta_batch(batches, None)
        if self.direction is None or batch is None:
            return {}
        with phase("meta: judgement"):
            judgement = self.judge(self.updates, self.direction, batch, rank_weight, strength.in_doubt, metric)
        if judgement is None:
            strength.postpone(self.updates)
            return {}
        strength.judge(self.updates, judgement)
        return {"strength": strength.beta, "radius": strength.radius}

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


def _refuse(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise NonFinite(f"the {what} is {number}", "lower designer.lr or optimizer.lr, or look at the feedback")
