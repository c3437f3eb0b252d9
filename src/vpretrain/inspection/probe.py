"""`vpretrain probe`: compare the drop of the feedback's loss that the value predicts for a step with the realised drop.

For the realised step d of the learner's optimizer the first-order prediction is -<g_down, d> (Eq 35), over all parameters and
over S alone. Each step is measured on one feedback batch, before and after.
"""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path

import torch

from vpretrain.config import Recipe
from vpretrain.console import steady
from vpretrain.files import write_whole
from vpretrain.method.algorithm import StepRecord
from vpretrain.method.protocols import Parameters
from vpretrain.method.value import gradient
from vpretrain.modality import modality_of
from vpretrain.plot import pyplot
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.train import begin, train
from vpretrain.types import Json


class OneStepProbe:
    """Observe a learner from outside, without an optimizer and without changing anything. `subset`: the names in S."""

    def __init__(self, parts: Parts, subset: tuple[str, ...]) -> None:
        self.parts, self.subset = parts, subset
        self.steps: list[dict[str, float]] = []
        self._look()

    def __call__(self, record: StepRecord) -> None:
        """Measure the step that was just made, and prepare for the next one."""
        with torch.no_grad():
            step = {name: theta - self._theta[name] for name, theta in self._now().items()}
            products = {name: float((self._g_down[name].double() * d.double()).sum()) for name, d in step.items()}
        self.steps.append(
            {
                "step": record.step,
                "realised": self._loss - self._evaluate(),
                "predicted": -sum(products.values()),
                "predicted_subset": -sum(products[name] for name in self.subset),
            }
        )
        self._look()

    def _look(self) -> None:
        """Take a new feedback batch, with its loss and its gradient at the present theta."""
        self._feedback = copy.deepcopy(self.parts.feedback.next())  # vision's heads change with every feedback batch
        self._theta = {name: theta.clone() for name, theta in self._now().items()}
        self._loss = self._evaluate()
        with self.parts.learner.meta_mode():
            self._g_down = gradient(self._weighted, self._theta)

    def _evaluate(self) -> float:
        with torch.no_grad(), self.parts.learner.meta_mode():
            return float(self._weighted(self._now()).double())

    def _weighted(self, parameters: Parameters) -> torch.Tensor:
        """Return L_down over all domains by their weights (Eq 18)."""
        weights = self.parts.feedback.weights
        losses = [weights[d] * self.parts.learner.evaluate(batch, parameters) for d, batch in self._feedback.items()]
        return torch.stack(losses).sum()

    def _now(self) -> Parameters:
        return {name: theta.detach() for name, theta in self.parts.learner.named_parameters()}


def probe(recipe: Recipe, steps: int) -> Json:
    """Make some steps of a recipe's run with a probe at each; return and write probe.json.

    Returns:
        `steps`: step, predicted and realised drops, in units of the evaluator's loss; `full` and `subset`: Pearson's r, and the
        slope of realised on predicted.

    Raises:
        UserError: the recipe cannot work.
    """
    parts = begin(recipe)
    if parts.warm_up is not None:
        parts.warm_up()
    total_steps = recipe.budget.steps or steps
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer, total_steps=total_steps)
    observer = OneStepProbe(parts, modality_of(recipe).subset(recipe, parts.learner))
    with steady("             probe", steps) as done:

        def after_step(record: StepRecord) -> None:
            observer(record)
            done(record.step + 1)

        train(recipe, parts, optimizer, steps=range(steps), after_step=after_step)
    results = {
        "arm": recipe.arm,
        "full": agreement(observer.steps, "predicted"),
        "subset": agreement(observer.steps, "predicted_subset"),
        "steps": observer.steps,
        "recipe": recipe.model_dump(mode="json"),
    }
    recipe.directory.mkdir(parents=True, exist_ok=True)
    write_whole(recipe.directory / "probe.json", json.dumps(results, indent=1))
    return results


def agreement(steps: list[dict[str, float]], key: str) -> dict[str, float]:
    """Return Pearson's r of predicted and realised drops, and the slope of realised on predicted (1 if first-order)."""
    predicted, realised = [step[key] for step in steps], [step["realised"] for step in steps]
    return {
        "pearson_r": statistics.correlation(predicted, realised),
        "slope": statistics.linear_regression(predicted, realised).slope,
    }


def draw_probe(results: Json, file: Path) -> Path | None:
    """Plot realised against predicted drops, for all parameters and for S; return None without matplotlib."""
    plot = pyplot()
    if plot is None:
        return None
    figure, axes = plot.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    realised = [step["realised"] for step in results["steps"]]
    panels = (("full", "predicted", "all parameters"), ("subset", "predicted_subset", "S alone"))
    for axis, (which, key, title) in zip(axes, panels, strict=True):
        predicted = [step[key] for step in results["steps"]]
        axis.axline((0, 0), slope=1, color="grey", linewidth=0.8)
        axis.plot(predicted, realised, "o", markersize=4)
        axis.set_xlabel("predicted drop of the feedback loss")
        found = results[which]
        axis.set_title(f"{title}: r = {found['pearson_r']:.3f}, slope {found['slope']:.2f}")
    axes[0].set_ylabel("realised drop")
    figure.savefig(file, dpi=120)
    plot.close(figure)
    return file
