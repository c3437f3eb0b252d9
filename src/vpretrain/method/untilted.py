"""The warning about a run of an arm of V whose targets stayed those of the base task."""

from __future__ import annotations

from vpretrain.config import Recipe
from vpretrain.method.strength import Strength
from vpretrain.types import Json

# A judgement comes in the first half of a run. Under a budget of minutes this is the half of the minutes, in which slow first
# steps leave less than half of the steps: so five times the steps of the first judgement, and not twice.
_TOO_SHORT = 5


def untilted(recipe: Recipe, result: Json, *, mean: str, stayed: str, shorter: str) -> str:
    """Return the warning, with its reason as far as that is known.

    Args:
        recipe: of the run, whose arm follows the feedback.
        result: the run's figures.
        mean: the figure that tells how far the targets were moved, such as `mean_alpha`.
        stayed: what they stayed.
        shorter: settings that shorten a step.
    """
    steps, updates, first = result["steps"], result["meta_updates"], _first_judgement(recipe)
    if recipe.value.strength == "auto" and not updates and steps < _TOO_SHORT * first:
        return (
            f"the targets stayed {stayed}: the run was too short (steps made: {steps}). The strength is judged after "
            f"{first} steps at the earliest, and only in the first half of a run: raise budget.minutes or budget.steps, "
            f"or shorten the steps by {shorter}"
        )
    examples = "images" if recipe.modality == "vision" else "pairs"
    return (
        f"the targets stayed {stayed} ({mean.replace('_', ' ')} {result[mean]:.4f} after {updates} meta "
        f"updates): the feedback's {examples} agreed on no direction, a tilt would have done harm, or the run was too short "
        "to tell"
    )


def _first_judgement(recipe: Recipe) -> int:
    """Return the learner steps before the first judgement."""
    every_steps = recipe.value.every_steps
    return recipe.designer.burn_in_steps + every_steps * Strength.that_chooses_itself(every_steps).next
