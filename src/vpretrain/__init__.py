"""V-pretraining: continued pretraining with downstream feedback (Ke and Fanti, arXiv 2601.22108).

from vpretrain import load_recipe, run_recipe
result = run_recipe(load_recipe("recipes/quickstart.yaml", ["budget.steps=10", "budget.minutes=null"]))
print(result.answer_nll)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from vpretrain.metal import let_fall_back

let_fall_back()  # before anything below imports torch

from vpretrain.compare.compare import compare
from vpretrain.compare.outcome import ComparisonResult
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.outcome import RunResult
from vpretrain.recipe import load_recipe
from vpretrain.run import run_recipe

if TYPE_CHECKING:
    from vpretrain.language.adapters.attach import VPretraining as VPretraining
    from vpretrain.language.adapters.attach import feedback_rows as feedback_rows
    from vpretrain.language.adapters.sft_trainer import VPretrainSFTTrainer as VPretrainSFTTrainer
    from vpretrain.language.adapters.trainer import VPretrainTrainer as VPretrainTrainer
    from vpretrain.vision.adapters.attach import VisionPretraining as VisionPretraining
    from vpretrain.vision.adapters.attach import view_batch as view_batch

__all__ = [
    "ComparisonResult",
    "Recipe",
    "RunResult",
    "UserError",
    "VPretrainTrainer",
    "VPretraining",
    "VisionPretraining",
    "__version__",
    "compare",
    "feedback_rows",
    "load_recipe",
    "run_recipe",
    "view_batch",
]
__version__ = version("vpretrain")
# Imported on first access: transformers' Trainer takes seconds. TRL is an extra, so its trainer is not in `__all__`.
_LATE = {
    "VPretrainSFTTrainer": "language.adapters.sft_trainer",
    "VPretrainTrainer": "language.adapters.trainer",
    "VPretraining": "language.adapters.attach",
    "VisionPretraining": "vision.adapters.attach",
    "feedback_rows": "language.adapters.attach",
    "view_batch": "vision.adapters.attach",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"vpretrain.{_LATE[name]}"), name)
    raise AttributeError(f"module 'vpretrain' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATE})
