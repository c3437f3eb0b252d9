"""The end of a run: export, evaluation, result and model card."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import torch

from vpretrain import distributed
from vpretrain.console import note, warn, working
from vpretrain.files import read_lines, whole_directory, write_json
from vpretrain.run.card import provenance, write_card
from vpretrain.run.circumstances import circumstances
from vpretrain.run.export import export_checkpoint
from vpretrain.run.left_out import lines
from vpretrain.run.log import METRICS
from vpretrain.run.pace import uneven
from vpretrain.run.train import schedule_of
from vpretrain.types import Json

if TYPE_CHECKING:
    from vpretrain.run.session import Session


def finish(session: Session) -> Json:
    """Export, evaluate, and write result.json, which marks a run as finished; return its content."""
    result = _figures(session)
    if session.budget.step:
        if warnings := [text for text in (session.parts.warning(result), _pace(session)) if text]:
            result["warning"] = "; ".join(warnings)
            warn(f"warning: {result['warning']}")
        if left_out := session.parts.left_out(session.parts.stream_cursor()):
            result["left_out"] = left_out
            for line in lines(left_out):
                note(line)
        sharded = session.recipe.parallel == "fsdp" and distributed.size() > 1
        with working(f"{session.recipe.arm}: exporting the model"):
            distributed.on_rank_0(lambda: _export(session, sharded))
    result |= session.parts.evaluate()
    distributed.on_rank_0(lambda: _write(session, result))
    return result


def _figures(session: Session) -> Json:
    recipe, unit = session.recipe, session.recipe.unit
    steps, seconds = session.budget.step, session.budget.seconds
    return {
        "name": recipe.name,
        "arm": recipe.arm,
        "seed": recipe.seed,
        "steps": steps,
        "processes": distributed.size(),
        unit: session.totals["read"],
        "seconds": seconds,
        f"{unit}_per_s": session.totals["read"] / seconds if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "total_steps": session.optimizer.total_steps,
        "meta_updates": session.totals["meta_updates"],
        **{f"mean_{name}": total / steps for name, total in session.side.items()},
    }


def _pace(session: Session) -> str | None:
    recipe, parts = session.recipe, session.parts
    if parts.train is not None or not distributed.is_rank_0():  # GRPO's steps take as long as their attempts
        return None
    updates = schedule_of(recipe, parts).updates if parts.meta is not None else lambda step: False
    return uneven(read_lines(session.directory / METRICS), recipe.unit, updates)


def _export(session: Session, sharded: bool) -> None:
    with whole_directory(session.directory / "model") as model:
        if sharded:  # gathered from the checkpoint that was just written
            export_checkpoint(session.recipe, session.directory / "checkpoints", model)
        else:
            session.parts.export(model)
    if session.parts.illustrate is not None:
        session.parts.illustrate(session.directory)


def _write(session: Session, result: Json) -> None:
    if result["steps"]:
        made = provenance(session.recipe) | circumstances(session.commit)
        write_json(session.directory / "provenance.json", made)
        write_card(session.directory, session.directory / "model", result=result)
    write_json(session.directory / "result.json", result)


def peak_memory_bytes() -> int:
    """Return this process's peak memory: device memory on CUDA, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
