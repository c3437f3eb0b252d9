"""Export a run's learner in its community's format."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe, room
from vpretrain.run.checkpoint import checkpoints, load_checkpoint


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
        shutil.copytree(source / "model", directory, dirs_exist_ok=True)
        return
    saved = checkpoints(source / "checkpoints")
    if not saved:
        raise UserError(f"{run} has neither a model nor a checkpoint: run it first")

    recipe = load_recipe(source / "recipe.yaml")
    learner, write = room(recipe.modality, "assemble").load_learner(recipe)
    tensors, _ = load_checkpoint(saved[-1])
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(tensors["learner"][name])
    write(directory)
