"""The run of one arm: budget, checkpoints, signals, log."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.outcome import RunResult

if TYPE_CHECKING:
    from vpretrain.run.hooks import Hook


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
    until: float = 1.0,
    hooks: Sequence[Hook] = (),
) -> RunResult:
    """Run a recipe's arm: train, export, evaluate.

    Args:
        recipe: see `vpretrain.load_recipe`.
        resume: continue from the newest checkpoint in the run's directory.
        overwrite: delete an earlier run there.
        accept_changes: resume with settings other than those the run began with.
        until: the fraction of the budget at which to save and leave the rest for a later call.
        hooks: callbacks of the run, see `vpretrain.run.hooks.Hook`.

    Returns:
        The metrics of the run and of its evaluation, as in `result.json` in the run's directory.

    Raises:
        UserError: the recipe cannot work, or the directory is taken.
        Interrupted: a signal stopped the run, after it had saved its state.
        Paused: `until` is reached.

    Examples:
        Train, and go on with a larger budget:

        >>> run_recipe(load_recipe("recipe.yaml", ["budget.steps=4"]), overwrite=True).steps
        4
        >>> run_recipe(load_recipe("recipe.yaml", ["budget.steps=6"]), resume=True).steps
        6
    """
    # Imported here: torch and transformers take seconds, and `--help` and recipe errors should not wait for them.
    from vpretrain import distributed
    from vpretrain.console import console, working
    from vpretrain.run.directory import failures_in_one_line, prepare_directory
    from vpretrain.run.lock import locked
    from vpretrain.run.session import Session
    from vpretrain.run.train import begin

    if not isinstance(recipe, Recipe):
        raise UserError(f"run_recipe takes a recipe: give load_recipe({str(recipe)!r})")
    kwargs = {"resume": resume, "overwrite": overwrite, "accept_changes": accept_changes}
    with distributed.process_group(), failures_in_one_line(recipe), contextlib.ExitStack() as held:
        console.quiet = not distributed.is_rank_0()
        distributed.on_rank_0(lambda: held.enter_context(locked(recipe.directory)))
        distributed.on_rank_0(lambda: prepare_directory(recipe, **kwargs))
        with working(f"{recipe.arm}: loading the learner and the data"):
            session = Session(recipe, begin(recipe), resume=resume, until=until, hooks=hooks)
        return RunResult(recipe, session.run())
