"""Arms that follow the feedback, and whose targets it never moved: they trained as the baseline, and compare only steps."""

from __future__ import annotations

from vpretrain.compare.entry import parse_entry
from vpretrain.config import Recipe
from vpretrain.types import Json

_MOVED = ("mean_alpha", "mean_tilt")  # how far the targets were moved, in language and in vision
_OF_FEEDBACK = ("value.", "designer.", "feedback.")  # settings that change nothing while the targets are not moved


def trained_as(results: Json, recipe: Recipe, arm: str) -> str:
    """Return the baseline if an arm trained exactly as it does throughout, else the arm itself."""
    found = results["arms"][arm]
    of = recipe.arms.get(found["arm"])
    untouched = any(found.get(mean) == 0.0 for mean in _MOVED)
    same_stream = not getattr(of, "mixed_in", False)  # which only arms in language can have
    same_settings = all(setting.startswith(_OF_FEEDBACK) for setting in parse_entry(arm).settings)
    same = of is not None and of.steered and untouched and same_stream and same_settings
    return recipe.baseline if same else arm


def alike(results: Json, recipe: Recipe, a: str, b: str) -> bool:
    """Whether two arms trained in the same way, so that after equal steps they are the same model."""
    return trained_as(results, recipe, a) == trained_as(results, recipe, b)
