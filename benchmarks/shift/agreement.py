"""`python -m benchmarks.shift.agreement`: how far the agreement of 8 feedback pairs with the direction lies from 0.

In standard errors, every r steps of untilted runs, on the shifted recipe or another; `random-feedback` shows the same for
noise.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from statistics import fmean

from benchmarks.command import command
from vpretrain.config import Recipe
from vpretrain.method.strength import Judgement, Strength
from vpretrain.recipe import load_recipe
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import begin, train

_TOTAL = 60  # steps of the learning rate's schedule


class Recorder(Strength):
    """A strength that is judged at every update, and stays 0."""

    def due(self, update: int, progress: float) -> bool:
        """Whether AdamW has a metric."""
        return update >= 1

    def judge(self, update: int, judgement: Judgement) -> None:
        """Keep the judgement."""
        self.judgements.append(judgement)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the standard errors, a line per arm and seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift.agreement", description=__doc__)
    parser.add_argument("settings", metavar="field=value", nargs="*", help="settings to change in the recipe")
    parser.add_argument("--recipe", default="recipes/smollm2-gsm8k-shift.yaml", help="default: %(default)s")
    parser.add_argument("--arms", default="v,random-feedback", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=17, help="learner steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    for arm in options.arms.split(","):
        for seed in range(options.seeds):
            settings = [*options.settings, f"arm={arm}", f"seed={seed}"]
            every, judgements = agreement(load_recipe(options.recipe, settings), options.steps)
            seen = (f"step {every * n}: {standard_errors(j.agreement):.1f}" for n, j in enumerate(judgements, start=1))
            print(f"{arm}, seed {seed}:", ", ".join(seen), flush=True)


def agreement(recipe: Recipe, steps: int) -> tuple[int, list[Judgement]]:
    """Return r, and the judgement at every meta update of an untilted run."""
    recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"steps": _TOTAL, "minutes": None})})
    parts = begin(recipe)
    assert parts.meta is not None
    parts.meta.strength = Recorder()
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer, total_steps=_TOTAL)
    train(recipe, parts, optimizer, steps=range(steps), after_step=lambda record: None)
    return recipe.value.every_steps, parts.meta.strength.judgements


def standard_errors(values: Sequence[float]) -> float:
    """Return the mean in standard errors."""
    mean, n = fmean(values), len(values)
    return mean / (math.dist(values, [mean] * n) / math.sqrt(n * (n - 1)))


if __name__ == "__main__":
    command(main)
