"""Export a run's learner in its community's format, with its model card; upload it to the hub on request."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

from vpretrain.config import Recipe
from vpretrain.console import working
from vpretrain.errors import UserError
from vpretrain.files import size_of, whole_directory
from vpretrain.modality import modality_of
from vpretrain.pretrained import first_line
from vpretrain.recipe import load_recipe
from vpretrain.run.card import write_card
from vpretrain.run.checkpoint import checkpoints, load_newest, load_parameters
from vpretrain.run.find import several
from vpretrain.types import Json


def export(run: str, target: str) -> None:
    """Write the finished model of a run, or the learner of its newest checkpoint if it has not finished.

    The target is a new or empty directory; from_pretrained loads it, with equal outputs. Raises UserError if the target is
    taken or cannot be written, or if there is nothing to export.
    """
    try:
        _export(run, target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {target}: {error}; make room, or name another directory") from error


def _export(run: str, target: str) -> None:
    source, directory = Path(run), Path(target)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{target} is not empty: name a new directory")
    if directory.name in ("", ".."):  # the export takes the place of an empty directory, in which a shell may be
        raise UserError(f"{target} cannot be replaced: name a new directory")
    if not (source / "recipe.yaml").exists():
        raise UserError(f"{run} is not the directory of a run: it has no recipe.yaml")
    if (source / "model").is_dir() and (source / "result.json").exists():
        whole = size_of(source / "model")
        with whole_directory(directory) as aside:
            with working("copying the model", lambda: size_of(aside) / max(1, whole)):
                shutil.copytree(source / "model", aside)
            write_card(source, aside)
        return
    if runs := [path.parent for path in sorted(source.glob("*/recipe.yaml")) if _exportable(path.parent)]:
        raise several(source, runs)
    if not checkpoints(source / "checkpoints"):
        raise UserError(f"{run} has neither a model nor a checkpoint: run it first")

    recipe = load_recipe(source / "recipe.yaml")
    with whole_directory(directory) as aside, working("exporting the model"):
        state = export_checkpoint(recipe, source / "checkpoints", aside)
        figures = {"steps": state["budget"]["step"], "seconds": state["budget"]["seconds"]}
        figures |= {recipe.unit: state["totals"]["read"], "meta_updates": state["totals"]["meta_updates"]}
        write_card(source, aside, result=figures)


def _exportable(run: Path) -> bool:
    return (run / "model").is_dir() or bool(checkpoints(run / "checkpoints"))


def export_checkpoint(recipe: Recipe, checkpoints: Path, directory: Path) -> Json:
    """Write the learner of the newest checkpoint, which may be sharded; return the run's state in it. Raises UserError."""
    learner, write = modality_of(recipe).load_learner(recipe)
    groups, state = load_newest(checkpoints)
    load_parameters(learner, groups["learner"])
    write(directory)
    return state


def check_hub_name(name: str) -> None:
    """Raise UserError if this cannot be the name of a model on the hub."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise UserError(f"--push-to-hub {name}: give USER/NAME")


def push(directory: str, name: str, *, private: bool) -> str:
    """Upload to the hub a directory that `export` wrote, with the user's own login; return its address.

    USER/NAME is created if it does not exist; `private`: to a private repository only. Raises UserError.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise UserError("it is there already, and public")
        with working("uploading"):
            api.upload_folder(repo_id=name, folder_path=directory, commit_message="Upload by vpretrain export")
    except Exception as error:  # of the hub, the network or the login
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"{directory} is exported but not uploaded to {name}: {reason}; mend it (hf auth login, or HF_TOKEN, names who "
            f"you are), then: hf upload {name} {directory}"
        ) from error
    return str(url)
