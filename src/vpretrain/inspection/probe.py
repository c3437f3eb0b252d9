"""`vpretrain probe`: compare the drop of the feedback's loss that is predicted for a step with the drop on held-out feedback.

Everything is predicted from one feedback batch and measured on another, neither of which gave the value direction. For the
step d that the learner's optimizer makes:

    full     -<g_down, d> over all parameters (Eq 35)
    subset   the same over S alone
    seen     -<u, P^-1 d>, with the direction u of the last meta update along which tasks are built
    value    eta <u, g_pre> over S, the learning rate times the value as the designer saw it (Eq 1): what the paper compares.
             Where V is a cosine, u has no part along the learner's own gradient, and so leaves out most of V
    gain     -<g_down, d - d_base> against the difference in the drop: what the task adds to the base task's step d_base, from
             the same learner, optimizer and batches; only this part depends on the task

The first two measure how linear the loss is along a step, and how much two feedback batches have in common; they are large for
any task.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from vpretrain.config import Recipe
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.files import write_json
from vpretrain.method.algorithm import StepRecord
from vpretrain.method.meta import NOTHING_TOLD
from vpretrain.method.protocols import AnyBatch, Parameters, Stream
from vpretrain.method.step import learner_losses
from vpretrain.method.value import gradient
from vpretrain.modality import modality_of
from vpretrain.plot import pyplot, save_figure
from vpretrain.run.optimizer import AdamW, load_optimizer_tensors, optimizer_tensors
from vpretrain.run.parts import Parts
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.run.train import begin, train
from vpretrain.types import Json

PREDICTIONS = {  # name -> what is predicted, what is realised, title
    "full": ("predicted", "realised", "all parameters"),
    "subset": ("predicted_subset", "realised", "S alone"),
    "seen": ("seen", "realised", "along the direction in use"),
    "value": ("value", "realised", "eta V over S"),
    "gain": ("predicted_gain", "realised_gain", "gain over the base task"),
}
OTHER_UNITS = frozenset({"seen", "value"})  # predictions in the unit of V, which is the loss's for a dot product only
_FEWEST = 3  # steps for a correlation
_ROUNDING = 1e-5  # relative difference of two steps below which their tasks were the same


class ProbedAdamW(AdamW):
    """The learner's optimizer, with a call before each step, when the gradients are there and theta has not moved."""

    before_step: Callable[[], None]

    def step(self, loss: float) -> dict[str, float]:
        """Call `before_step`, then make the step."""
        self.before_step()
        return super().step(loss)


class WatchedStream:
    """A stream that keeps its last micro-batches, and the random state after them, from which a step's passes draw."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.batches: list[AnyBatch] = []
        self.random: dict[str, torch.Tensor] = {}

    def next(self) -> list[AnyBatch]:
        """Return the next micro-batches."""
        self.batches, self.random = self._stream.next(), random_state()
        return self.batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OneStepProbe:
    """Observe a learner from outside. The run's feedback goes on by two batches per step (in vision its heads too); the rest of
    the run stays as it is.

    Args:
        parts: of the run; their stream is watched from now on.
        optimizer: the learner's.
        subset: the names in S.
        optimizer_aware: whether the value direction contains the optimizer's metric.
    """

    def __init__(self, parts: Parts, optimizer: ProbedAdamW, subset: tuple[str, ...], *, optimizer_aware: bool) -> None:
        self.parts, self.optimizer, self.subset, self.optimizer_aware = parts, optimizer, subset, optimizer_aware
        self.steps: list[Json] = []
        self.skipped = 0
        self.stream = WatchedStream(parts.stream)
        parts.stream = cast(Stream, self.stream)
        optimizer.before_step = self._before

    def after_step(self, step: int) -> None:
        """Measure the step that was just made, if the feedback told something before it."""
        if not self._held_out:
            self.skipped += 1
            return
        after, moved = self._evaluate(), self._moved()
        d = {name: moved[name] - self._theta[name] for name in moved}
        more = {name: moved[name] - self._base[name] for name in moved}
        on_base = _product(more, more) <= _ROUNDING**2 * _product(d, d)
        self.steps.append(
            {
                "step": step,
                "realised": self._loss - after,
                "predicted": -_product(self._g_down, d),
                "predicted_subset": -_product({name: self._g_down[name] for name in self.subset}, d),
                "seen": None if self._u is None else -_product(self._u, d),
                "value": self._value,
                "realised_gain": None if on_base else self._base_loss - after,
                "predicted_gain": None if on_base else -_product(self._g_down, more),
            }
        )

    def _before(self) -> None:
        """Take two feedback batches: the gradient of one, the loss of the other; and make and undo the base task's step."""
        # Copies, since vision's heads change with every feedback batch.
        seen, held_out = (copy.deepcopy(self.parts.feedback.next()) for _ in range(2))
        # A verifier may have nothing to tell of a domain; prediction and measurement must be of the same domains.
        self._held_out = {domain: batch for domain, batch in held_out.items() if domain in seen}
        if not self._held_out:
            return
        seen = {domain: seen[domain] for domain in self._held_out}
        self._theta = self._moved()
        with self.parts.learner.meta_mode():
            self._g_down = gradient(lambda theta: self._weighted(seen, theta), self._theta)
        self._loss, self._u = self._evaluate(), self._direction()
        gradients = {name: p.grad for name, p in self.optimizer.parameters.items()}
        self._value = self._value_of(gradients)
        moments = {name: value.clone() for name, value in optimizer_tensors(self.optimizer.torch).items()}
        counters, random = self.optimizer.state_dict(), random_state()
        self.optimizer.torch.zero_grad(set_to_none=True)
        set_random_state(self.stream.random)  # the same dropout as in the step itself
        loss = 0.0
        for part in learner_losses(self.parts.learner, self.parts.base, self.stream.batches):
            part.loss.backward()
            loss += float(part.loss.detach())
        AdamW.step(self.optimizer, loss)
        self._base, self._base_loss = self._moved(), self._evaluate()
        with torch.no_grad():
            for name, p in self.optimizer.parameters.items():
                p.copy_(self._theta[name])
                p.grad = gradients[name]
        load_optimizer_tensors(self.optimizer.torch, moments)
        self.optimizer.load_state_dict(counters)
        set_random_state(random)

    def _value_of(self, gradients: Mapping[str, torch.Tensor | None]) -> float | None:
        """Return eta <u, g_pre>; None before there is a direction."""
        u = None if self.parts.meta is None else self.parts.meta.direction
        if u is None:
            return None
        g_pre = {name: g for name, g in gradients.items() if g is not None and name in u}
        return self.optimizer.learning_rate() * _product(g_pre, u)

    def _direction(self) -> Parameters | None:
        """Return u without the metric; None before there is one."""
        u = None if self.parts.meta is None else self.parts.meta.direction
        P = self.optimizer.metric(u) if u is not None and self.optimizer_aware else None
        if u is None or P is None:
            return u
        return {name: torch.where(P[name] > 0, part / P[name], 0.0) for name, part in u.items() if name in P}

    def _evaluate(self) -> float:
        with torch.no_grad(), self.parts.learner.meta_mode():
            return float(self._weighted(self._held_out, self._now()).double())

    def _weighted(self, feedback: dict[str, AnyBatch], parameters: Parameters) -> torch.Tensor:
        """Return L_down over all domains by their weights (Eq 18)."""
        weights = self.parts.feedback.weights
        losses = [weights[d] * self.parts.learner.evaluate(batch, parameters) for d, batch in feedback.items()]
        return torch.stack(losses).sum()

    def _now(self) -> Parameters:
        return {name: theta.detach() for name, theta in self.parts.learner.named_parameters()}

    def _moved(self) -> Parameters:
        return {name: theta.clone() for name, theta in self._now().items()}


def probe(recipe: Recipe, steps: int) -> Json:
    """Make some steps of a recipe's run with a probe at each; return and write probe.json.

    Returns:
        `steps`: predicted and realised drops, in units of the evaluator's loss; and for each of PREDICTIONS Pearson's r and the
        slope of realised on predicted (of `seen` and `value` in the unit of V), null where there is no direction, or where the
        task is the base task; `skipped`: how many of the steps have no figures, since two draws of a verifier's feedback told
        nothing of a common domain.

    Raises:
        UserError: the recipe cannot work, or all steps were skipped.
    """
    if recipe.arms[recipe.arm].trains_alone:
        raise UserError(f"arm={recipe.arm} has a training of its own, without a task to probe: use arm=v")
    parts = begin(recipe)
    if parts.warm_up is not None:
        parts.warm_up()
    total_steps = recipe.budget.steps or steps
    optimizer = ProbedAdamW(parts.learner.named_parameters(), recipe.effective_optimizer, total_steps=total_steps)
    subset, aware = modality_of(recipe).subset(recipe, parts.learner), recipe.effective_value.metric == "adamw"
    observer = OneStepProbe(parts, optimizer, subset, optimizer_aware=aware)
    with steady("             probe", steps, "steps") as done:

        def after_step(record: StepRecord) -> None:
            observer.after_step(record.step)
            done(record.step + 1)

        train(recipe, parts, optimizer, steps=range(steps), after_step=after_step)
    if not observer.steps:
        raise UserError(NOTHING_TOLD)
    found = {name: agreement(observer.steps, *keys) for name, (*keys, _) in PREDICTIONS.items()}
    results = {"arm": recipe.arm, **found, "steps": observer.steps, "skipped": observer.skipped}
    results["recipe"] = recipe.model_dump(mode="json")
    recipe.directory.mkdir(parents=True, exist_ok=True)
    write_json(recipe.directory / "probe.json", results)
    return results


def agreement(steps: Sequence[Json], predicted: str, realised: str) -> Json:
    """Return Pearson's r of predicted and realised drops, and the slope of realised on predicted (1 if first-order)."""
    pairs = points(steps, predicted, realised)
    x, y = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(x)) < _FEWEST or len(set(y)) < _FEWEST:
        return {"pearson_r": None, "slope": None}
    return {"pearson_r": statistics.correlation(x, y), "slope": statistics.linear_regression(x, y).slope}


def points(steps: Sequence[Json], predicted: str, realised: str) -> list[tuple[float, float]]:
    """Return (predicted, realised) of the steps that have both; a step on the base task has no gain over it."""
    return [(step[predicted], step[realised]) for step in steps if step.get(predicted) is not None]


def points_by_prediction(results: Json) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each prediction that has any."""
    found = {name: points(results["steps"], *keys) for name, (*keys, _) in PREDICTIONS.items() if name in results}
    return {name: pairs for name, pairs in found.items() if pairs}


def draw_probe(results: Json, file: Path) -> Path:
    """Plot realised against predicted drops."""
    panels = points_by_prediction(results)
    count = len(panels)
    figure, axes = pyplot().subplots(1, count, figsize=(4.2 * count, 4), layout="constrained", squeeze=False)
    for axis, (name, pairs) in zip(axes[0], panels.items(), strict=True):
        if name not in OTHER_UNITS:
            axis.axline((0, 0), slope=1, color="grey", linewidth=0.8)
        axis.plot(*zip(*pairs, strict=True), "o", markersize=4)
        axis.set(title=f"{PREDICTIONS[name][2]}\n{shown(results[name])}", xlabel="predicted drop of the feedback loss")
    axes[0][0].set_ylabel("realised drop on held-out feedback")
    return save_figure(figure, file)


def shown(found: Json) -> str:
    """Format an agreement."""
    if found["pearson_r"] is None:
        return "nothing to compare"
    return f"r = {found['pearson_r']:+.3f}, slope {found['slope']:+.3g}"


def _product(g: Parameters, d: Parameters) -> float:
    return sum(float((g[name].double() * d[name].double()).sum()) for name in g)
