"""Export a run's learner in its community's format."""

from __future__ import annotations

import shutil
from pathlib import Path

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import whole_directory
from vpretrain.recipe import load_recipe, room
from vpretrain.run.checkpoint import checkpoints, load_newest, load_parameters


def export(run: str, target: str) -> None:
    """Write the finished model of a run, or the learner of its newest checkpoint if it has not finished.

    Args:
        run: directory of the run.
        target: a new or empty directory; from_pretrained loads it, with equal outputs.

    Raises:
        UserError: there is nothing to export, or the target is taken.
    """
    source, directory = Path(run), Path(target)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{target} is not empty: name a new directory")
    if not (source / "recipe.yaml").exists():
        raise UserError(f"{run} is not the directory of a run: it has no recipe.yaml")
    if (source / "model").is_dir():
        with whole_directory(directory) as aside:
            shutil.copytree(source / "model", aside)
        return
    if not checkpoints(source / "checkpoints"):
        raise UserError(f"{run} has neither a model nor a checkpoint: run it first")

    recipe = load_recipe(source / "recipe.yaml")
    with whole_directory(directory) as aside:
        export_checkpoint(recipe, source / "checkpoints", aside)


def export_checkpoint(recipe: Recipe, checkpoints: Path, directory: Path) -> None:
    """Write the learner of the newest checkpoint, which may lie in shards. Raises UserError."""
    learner, write = room(recipe.modality, "assemble").load_learner(recipe)
    load_parameters(learner, load_newest(checkpoints)[0]["learner"])
    write(directory)
