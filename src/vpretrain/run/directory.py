"""Prepare a run's directory before any long work, and turn disk and memory failures into errors of one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from safetensors import SafetensorError

from vpretrain import distributed
from vpretrain.config import Recipe
from vpretrain.errors import FailedOnAnotherRank, MachineError, UserError
from vpretrain.files import remove
from vpretrain.recipe import refuse_changes, refuse_to_replace
from vpretrain.run.checkpoint import checkpoints
from vpretrain.run.log import LOGS
from vpretrain.run.skipped import SKIPPED
from vpretrain.run.tracking import KEPT, TENSORBOARD, require

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # torch's messages, on GPU and CPU
_MAY_CHANGE = {"budget", "checkpoint", "output", "name", "threads", "tracking"}  # what a resumed run may change
# What probe and profile write there. They may come before a run, which then keeps them unless it takes the place of another.
_LOOKED_AT = ("probe.json", "probe.png", "profile.json", "profile.png")


def prepare_directory(recipe: Recipe, *, resume: bool, overwrite: bool, accept_changes: bool = False) -> None:
    """Create the run's directory. Raises UserError before any long work if it cannot be used."""
    require(recipe.tracking)
    directory = recipe.directory
    saved = checkpoints(directory / "checkpoints")
    if (saved or (directory / "result.json").exists()) and not resume and not overwrite:
        raise UserError(
            f"{directory} holds a run already: add --resume to continue it, --overwrite to start anew (from Python "
            "resume=True, overwrite=True), or name=..."
        )
    if any(directory.glob("*/recipe.yaml")):
        raise UserError(f"{directory} holds a comparison, of which a run would replace files: choose another name=...")
    if not resume:
        refuse_to_replace(directory / "recipe.yaml")
    if resume and not saved:
        raise UserError(f"{directory} has no checkpoint to resume from: start it without --resume")
    if resume and not accept_changes:
        refuse_changes(recipe, directory / "recipe.yaml", except_for=_MAY_CHANGE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not resume:  # also files of a run that ended before its first checkpoint
            for name in ("checkpoints", "model", "replay", TENSORBOARD):
                remove(directory / name)
            looked_at = _LOOKED_AT if overwrite else ()
            for name in (*LOGS, SKIPPED, "result.json", "provenance.json", "recipe.yaml", KEPT, *looked_at):
                (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; change `output`") from None


@contextlib.contextmanager
def failures_in_one_line(recipe: Recipe) -> Iterator[None]:
    """Turn a full disk, lack of memory and the end of another process into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"cannot go on in {recipe.directory}: {error}; mend that (make room, if the disk is full), then --resume"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if distributed.size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise FailedOnAnotherRank(
                "another process has ended: see what it says, then continue with --resume"
            ) from error
        if not any(words in str(error) for words in _OUT_OF_MEMORY) and not isinstance(error, MemoryError):
            raise
        raise UserError(f"out of memory: {recipe.memory_knobs}; then start anew, or --resume") from error
