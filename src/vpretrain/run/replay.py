"""Save a step that ended in NaN or infinity, with its batch and all that it depended on, and run it again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vpretrain import distributed
from vpretrain.config import Recipe
from vpretrain.errors import NonFinite, UserError
from vpretrain.method.protocols import AnyBatch
from vpretrain.recipe import parse_recipe
from vpretrain.run.checkpoint import MANIFEST, load_checkpoint, save_checkpoint
from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.state import StepSnapshot, restore
from vpretrain.run.train import begin, train
from vpretrain.types import Json


def write_replay(
    recipe: Recipe, parts: Parts, optimizer: AdamW, before: StepSnapshot, step: int, error: NonFinite
) -> Path:
    """Save a failed step as a checkpoint, with its batch (with several processes, the stream gives the batch again)."""
    groups, state = before.captured(optimizer)
    groups["batch"] = _tensors(parts.stream.next()) if distributed.size() == 1 else {}
    state |= {"step": step, "error": error.what, "updated": before.updated, "recipe": recipe.model_dump(mode="json")}
    root = recipe.directory / "replay"
    earlier = root / f"step-{step:08d}"  # of an attempt with other settings
    distributed.on_rank_0(lambda: shutil.rmtree(earlier, ignore_errors=True))
    return save_checkpoint(root, step, groups, state, keep=3)


def replay(path: Path) -> Json:
    """Run a saved step again. Raises UserError if it cannot be read, or does not fit the recipe.

    Returns:
        `step`; `was` and `is`: how it failed, and how it fails now (None: it does not); `batch`: whether the stream still gives
        the same batch; `not_finite`: parameters of the learner with NaN or infinite entries in their gradient, and how many.
    """
    wrong = UserError(f"{path} is no step that failed: give a directory below a run's replay/")
    if not (path / MANIFEST).exists():
        raise wrong
    groups, state = load_checkpoint(path)
    if "error" not in state:
        raise wrong
    parts = begin(recipe := parse_recipe(state["recipe"], origin=str(path)))
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer)
    kept = groups.pop("batch")
    restore(parts, optimizer, groups, state)
    batch = _tensors(parts.stream.next())
    parts.stream.load_state_dict(state["stream"])
    if state["updated"]:  # phi is in the state after its update
        parts = replace(parts, meta=None)
    now = None
    try:
        train(recipe, parts, optimizer, steps=[state["step"]], after_step=lambda record: None)
    except NonFinite as error:
        now = error.what
    gradients = {name: p.grad for name, p in parts.learner.named_parameters() if p.grad is not None}
    counts = {name: int((~torch.isfinite(g)).sum()) for name, g in gradients.items()}
    return {
        "step": state["step"],
        "was": state["error"],
        "is": now,
        "batch": not kept
        or (batch.keys() == kept.keys() and all(torch.equal(batch[name], kept[name]) for name in kept)),
        "not_finite": {name: count for name, count in counts.items() if count},
    }


def _tensors(batches: list[AnyBatch]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": value.cpu()
        for number, batch in enumerate(batches)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
