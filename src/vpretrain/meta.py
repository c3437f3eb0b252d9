"""Line 2 of Algorithm 1: one update of the task designer from feedback.

This object holds g_down. It has the learner as a function, the designer and the designer's optimizer; it has no
reference to the learner's optimizer, and nothing it computes reaches the learner except through the designer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain import world
from vpretrain.errors import NonFinite
from vpretrain.guard import guarded
from vpretrain.phase import phase
from vpretrain.task import Construction, Feedback, Learner, Parameters
from vpretrain.value import Align, Valued, mean, norm


class MetaUpdate:
    """Raises V(phi) - R(phi) by one optimizer step (Eq 26), domain by domain (Eq 46) or on one weighted sum (Eq 18).

    Args:
        learner: theta, read only.
        construction: c_phi. One without parameters only gets a new value direction.
        feedback: D_fb.
        subset: names of the parameters in S, see `alignment_subset`.
        engine: one of `vpretrain.value.ENGINES`.
        kind: Align, `dot` or `cosine`.
        penalty: c of a dot's norm penalty, see `Align`.
        part: how much of the learner's batch a domain's g_pre is computed on, as `Batch.restrict` takes it.
        matched: align each domain with stream rows of the same domain.
        general: the retention guard's batch for the n-th meta update, n from 0; None for no guard. See `vpretrain.guard`.
        steps: optimizer steps of the designer in one update, all along the same value direction.
        average: beta of the running mean of g_down over feedback batches, per domain; 0 for the present one alone.
        feedback_every: meta updates that one feedback batch serves.
        random_seed: if given, g_down is replaced by Gaussian noise of the same norm: the random-feedback control.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        construction: Construction,
        feedback: Feedback,
        subset: Sequence[str],
        engine: Callable[..., Valued],
        kind: Literal["dot", "cosine"],
        part: Mapping[str, int],
        matched: bool,
        lr: float,
        clip_norm: float,
        penalty: float = 0.0,
        general: Callable[[int], Any] | None = None,
        steps: int = 1,
        average: float = 0.0,
        feedback_every: int = 1,
        random_seed: int | None = None,
    ) -> None:
        self.learner, self.construction, self.feedback = learner, construction, feedback
        self.subset = tuple(subset)
        self.engine, self.kind, self.penalty = engine, kind, penalty
        self.part, self.matched = part, matched
        self.general = general
        self.steps = steps
        self.beta, self.feedback_every = average, feedback_every
        self.kept: dict[str, Parameters] = {}  # g_down by domain, where a later update needs it
        self.clip_norm, self.random_seed = clip_norm, random_seed
        self.phi = list(construction.parameters())
        self.optimizer = torch.optim.AdamW(self.phi, lr=lr, weight_decay=0.0) if self.phi else None
        self.direction: Parameters | None = None
        self.updates = 0

    def __call__(self, batches: Sequence[Any], metric: Parameters | None = None) -> dict[str, float]:
        """One meta update on (a part of) the learner's next batches.

        Args:
            batches: the micro-batches of the coming learner step.
            metric: P over S for the optimizer-aware value; None for the identity.

        Returns:
            What happened, as numbers: value, |g_down|, R, the designer's gradient norm; with a guard the cosine of g_down and
            g_gen, and whether g_down had to give way.
        """
        with self.learner.meta_mode(), self.learner.looking_ahead(batches[0]):
            valued, record = self._values(batches, metric)
            if not valued:
                return {}
            self.direction = {n: torch.stack([w * v.direction[n] for w, v in valued]).sum(0) for n in self.subset}
            record["value"] = float(mean([(w, v.value) for w, v in valued]))
            for what in ("value", "g_down_norm"):
                _refuse(what.replace("_norm", ""), record[what])
            if self.optimizer is not None:
                regulariser = mean([(w, v.share * self.construction.regulariser(v.task)) for w, v in valued])
                record["regulariser"] = world.mean(float(regulariser.detach()))
                record["designer_grad_norm"] = self._step(regulariser - mean([(w, v.surrogate) for w, v in valued]))
                for _ in range(self.steps - 1):
                    renewed = [(w, v.share, *v.again()) for w, v in valued if v.again is not None]
                    regulariser = mean([(w, s * self.construction.regulariser(task)) for w, s, _, task in renewed])
                    self._step(regulariser - mean([(w, surrogate) for w, _, surrogate, _ in renewed]))
        self.updates += 1
        return record

    def values(
        self, batches: Sequence[Any], metric: Parameters | None = None
    ) -> tuple[list[tuple[float, Valued]], float]:
        """The (domain weight, value) pairs on these batches, and |g_down|. Call in the learner's meta mode."""
        valued, record = self._values(batches, metric)
        return valued, record["g_down_norm"]

    def pairs(self, batches: Sequence[Any]) -> tuple[list[tuple[float, Any, float, Parameters]], float]:
        """What is to be aligned: (domain weight, meta batch, own share of it, g_down) each; and |g_down|. Call in meta mode."""
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
        found = [(weight, *self._meta_batch(batches, domain), g) for weight, domain, g in aligned]
        return [pair for pair in found if pair[1] is not None], g_down_norm

    def at(self) -> Parameters:
        """theta_S."""
        names = set(self.subset)
        return {n: p.detach() for n, p in self.learner.named_parameters() if n in names}

    def along(self, inputs: Any) -> Any:
        """The learner's state with its tangent along the present value direction; None before the first update."""
        if self.direction is None:
            return None
        theta = dict(self.learner.named_parameters())
        with self.learner.meta_mode(), self.learner.plain():
            return self.learner.forward(
                inputs, {n: forward_ad.make_dual(theta[n].detach(), u) for n, u in self.direction.items()}
            )

    def _gradient(self, batch: Any) -> Parameters:
        """Of L_down by theta_S, in the learner's own precision, which is enough for a direction."""

        share = batch.weight / world.mean(batch.weight)

        def loss(parameters: Parameters) -> Tensor:
            with self.learner.autocast():
                return share * self.learner.evaluate(batch, parameters)

        return self.learner.gradient(loss, self.at())

    def _feedback_gradient(self, batch: Any, generator: torch.Generator | None) -> Parameters:
        g_down = self._gradient(batch)
        if generator is None:
            return g_down
        noise = {n: _like(torch.randn(g.shape, generator=generator), g) for n, g in g_down.items()}
        scale = norm(g_down) / norm(noise)
        return {n: scale * g for n, g in noise.items()}

    def _feedback_gradients(self) -> dict[str, Parameters]:
        """g_down by domain: of the next feedback batch, its running mean, or what there is from the last one."""
        if self.kept and self.updates % self.feedback_every:
            return self.kept
        generator = None
        if self.random_seed is not None:
            generator = torch.Generator().manual_seed(self.random_seed * 1_000_003 + self.updates)
        g_down = {domain: self._feedback_gradient(batch, generator) for domain, batch in self.feedback.next().items()}
        if self.beta and self.kept:
            g_down = {
                domain: {n: torch.lerp(g, self.kept[domain][n].to(g), self.beta) for n, g in of_domain.items()}
                for domain, of_domain in g_down.items()
            }
        if self.beta or self.feedback_every > 1:
            self.kept = g_down
        return g_down

    def _values(
        self, batches: Sequence[Any], metric: Parameters | None
    ) -> tuple[list[tuple[float, Valued]], dict[str, float]]:
        align = Align(self.kind, metric, self.penalty)
        pairs, g_down_norm = self.pairs(batches)
        at = self.at()
        record = {"g_down_norm": g_down_norm}
        if self.general is not None and pairs:
            general = self.general(self.updates)
            with phase("meta: general gradient"):
                g_gen = self._gradient(general)
            cosines = [(weight, Align("cosine", metric)(g_down, g_gen)) for weight, _, _, g_down in pairs]
            record["general_alignment"] = float(mean(cosines))
            record["guard_active"] = float(any(cosine < 0 for _, cosine in cosines))
            pairs = [(*which, guarded(g_down, g_gen, metric)) for *which, g_down in pairs]
        with phase("meta: tangent"):
            return [
                (weight, self.engine(self.learner, self.construction, batch, at, g_down, align, share))
                for weight, batch, share, g_down in pairs
            ], record

    def _meta_batch(self, batches: Sequence[Any], domain: str | None) -> tuple[Any, float]:
        """A few rows of the first micro-batch that has any of the domain, and their share of what all processes have found.

        A process that has none, where another has, goes through the motions with some batch of no weight.
        """
        restricted = (batch.restrict(domain=domain, **self.part) for batch in batches)
        found = next((batch for batch in restricted if batch is not None), None)
        weight = 0.0 if found is None else found.weight
        whole = world.mean(weight)
        return (None, 0.0) if whole == 0 else (batches[0] if found is None else found, weight / whole)

    def _step(self, objective: Tensor) -> float:
        assert self.optimizer is not None
        with phase("meta: designer gradient"):
            gradients = world.mean_of(
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


def _like(values: Tensor, other: Tensor) -> Tensor:
    """On the device of another, and in shards as it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(values.to(other.dtype), other.device_mesh, other.placements)
    return values.to(other)


def _refuse(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise NonFinite(f"the {what} is {number}", "lower designer.lr or optimizer.lr, or look at the feedback")
