"""What keeps a run alive: budget, checkpoints, signals, log."""

from __future__ import annotations

import contextlib
from typing import Any

from vpretrain.config import Recipe


def run_recipe(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False, until: float = 1.0
) -> dict[str, Any]:
    """Run one arm as the recipe says: train, export, evaluate.

    Args:
        recipe: see `vpretrain.load_recipe`.
        resume: go on from the newest checkpoint in the run's directory.
        overwrite: throw away an earlier run there.
        accept_changes: resume with settings that the run did not begin with.
        until: the share of the budget at which to save and leave the rest for a later call.

    Returns:
        What `result.json` in the run's directory holds: figures of the run and of its evaluation.

    Raises:
        UserError: the recipe cannot work, or the directory is taken.
        Interrupted: a signal stopped it, after it had saved itself.
        Paused: `until` is reached.
    """
    # Imported late: torch and transformers take seconds, which `--help` and mistakes in a recipe need not wait for.
    from vpretrain import distributed
    from vpretrain.console import console
    from vpretrain.run.lock import locked
    from vpretrain.run.session import Session, prepare_directory, told
    from vpretrain.run.train import begin

    how = {"resume": resume, "overwrite": overwrite, "accept_changes": accept_changes}
    with contextlib.ExitStack() as held:
        held.enter_context(distributed.process_group())
        console.quiet = not distributed.is_rank_0()
        held.enter_context(told(recipe))
        distributed.on_rank_0(lambda: held.enter_context(locked(recipe.directory)))
        distributed.on_rank_0(lambda: prepare_directory(recipe, **how))
        with console.status(f"{recipe.arm}: loading the learner and the data"):
            session = Session(recipe, begin(recipe), resume=resume, until=until)
        return session.run()
