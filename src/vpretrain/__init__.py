"""V-pretraining: continued pretraining with downstream feedback (Ke and Fanti, arXiv 2601.22108).

from vpretrain import load_recipe, run_recipe
result = run_recipe(load_recipe("recipes/quickstart.yaml", ["budget.steps=10", "budget.minutes=null"]))
print(result["answer_nll"])
"""

from importlib.metadata import version

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe
from vpretrain.run import run_recipe

__all__ = ["Recipe", "UserError", "__version__", "load_recipe", "run_recipe"]
__version__ = version("vpretrain")
