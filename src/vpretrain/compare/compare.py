"""Compare arms and seeds under one budget: each run in its own process, from the same start."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from vpretrain.compare.entry import Entry, check_entries
from vpretrain.compare.outcome import ComparisonResult
from vpretrain.compare.results import START, run_name, summarise
from vpretrain.compare.runs import Process
from vpretrain.compare.study import run_study, write_study
from vpretrain.compare.tables import remarks
from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.run.card import write_card
from vpretrain.tables import cells


def compare(
    recipe: Recipe,
    arms: Sequence[str],
    *,
    seeds: Sequence[int] = (),
    rounds: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    start: Callable[[Sequence[str]], Process] | None = None,
) -> ComparisonResult:
    """Run the untouched learner, and each arm with each seed; return and write results.json.

    Args:
        recipe: the recipe that all arms share.
        arms: names of arms, with or without settings of their own, e.g. ["one-hot", "v", "v:value.align=dot"].
        seeds: of stream order, designer and dropout; none: the recipe's own.
        rounds: turns per run, over equal parts of its budget, so that a machine that slows down affects all arms alike.
        resume: keep finished runs, continue the interrupted one.
        overwrite: delete an earlier comparison of this name.
        start: as in `run_group`.

    Raises:
        UserError: an unknown arm, a setting that does not fit, a budget of no steps, a taken directory, or a run that failed
            (its own message is printed above).
        Interrupted: a signal stopped it, after the current run had saved its state.

    Examples:
        >>> results = compare(load_recipe("recipe.yaml"), ["one-hot", "v"], overwrite=True)
        >>> list(results.arms)
        ['step-0', 'one-hot', 'v']
        >>> print(results)
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"compare takes a recipe: give load_recipe({str(recipe)!r})")
    entries = check_entries(recipe, arms)
    if recipe.budget.steps == 0:
        raise UserError(
            "budget.steps=0 trains nothing that could be compared: give at least 1, or budget.minutes alone"
        )
    recipe = _with_points(recipe)
    seeds = list(dict.fromkeys(seeds)) or [recipe.seed]
    # Of each arm, the entry with the fewest settings.
    plain = {e.arm: e for e in sorted(entries, key=lambda entry: -len(entry.settings))}
    follow = {name: arm.follows for name, arm in recipe.arms.items() if arm.follows and arm.follows[0] in plain}
    members: dict[str, list[str]] = {}
    # Each seed starts with another arm, the first with one of V: it says whether the budget is too short for a tilt.
    first = next((number for number, e in enumerate(entries) if recipe.arms[e.arm].steered), 0)
    for turn, seed in enumerate(seeds, start=first):
        order = [*entries[turn % len(entries) :], *entries[: turn % len(entries)]]
        members |= {run_name(e.label, seed, seeds): _settings(e, seed) for e in order if e.arm not in follow}
    results = run_study(recipe, members, rounds=rounds, resume=resume, overwrite=overwrite, start=start)
    members = {}
    for seed, e in itertools.product(seeds, entries):  # arms whose settings match another's come after it
        if e.arm in follow:
            leader, settings_from = follow[e.arm]
            led = results[run_name(plain[leader].label, seed, seeds)]
            members[run_name(e.label, seed, seeds)] = _settings(e, seed, settings_from(led))
    if members:
        results |= run_study(recipe, members, rounds=rounds, resume=True, start=start)
    names = {START: [START]} | {e.label: [run_name(e.label, seed, seeds) for seed in seeds] for e in entries}
    runs = {arm: [results[name] for name in of] for arm, of in names.items()}
    scores = {arm: [read_lines(recipe.directory / name / "scores.jsonl") for name in of] for arm, of in names.items()}
    summary = summarise(runs, scores, recipe) | {"rounds": rounds, "seeds": seeds}
    summary |= {"table": cells(summary["arms"], recipe), "remarks": remarks(summary, recipe)}
    summary = write_study(recipe, "results.json", summary)
    for name in results:
        if (recipe.directory / name / "model").is_dir():
            write_card(recipe.directory / name, recipe.directory / name / "model")
    return ComparisonResult(recipe, summary)


def _with_points(recipe: Recipe) -> Recipe:
    """Return the recipe with a number of evaluations along its runs, so that curves have more points than their ends."""
    if recipe.evaluation.points is not None:
        return recipe
    points = 4 if recipe.evaluation.only_reads else 2
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"points": points})})


def _settings(entry: Entry, seed: int, following: Sequence[str] = ()) -> list[str]:
    """Return the settings of an entry's run; its own override those that follow from another arm's result."""
    return [f"arm={entry.arm}", *following, *entry.settings, f"seed={seed}"]
