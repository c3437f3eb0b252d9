"""`vpretrain profile`: the time of a step by phase, and what V adds to ordinary pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from vpretrain.config import Recipe
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.files import write_json
from vpretrain.method.algorithm import StepRecord
from vpretrain.plot import pyplot, save_figure
from vpretrain.run.optimizer import AdamW
from vpretrain.run.train import begin, train
from vpretrain.timing import watching
from vpretrain.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDINARY = ("stream", "learner forward", "learner backward", "learner optimizer")  # phases of ordinary pretraining
_META = "meta: "  # how the phases of a meta update begin


def profile(recipe: Recipe, steps: int) -> Json:
    """Time a recipe's steps; return and write profile.json.

    Args:
        recipe: the run. Its burn-in is left out: it is not representative of the steps that follow.
        steps: rounded up to whole periods of `value.every_steps`, so that meta updates count in proportion. One more period
            before these, with the first meta update after it, warms up allocators and caches and is not timed: in vision that
            update fits the heads for the first time.

    Returns:
        `phases`: name -> microseconds per token (per image in vision); `added`: the sum of those that ordinary pretraining
        does not have, and its ratio to the rest; `meta_share`: the meta updates' fraction of a step's time (version 1's
        Table 3: the share of device time in the value update).

    Raises:
        UserError: the recipe cannot work.
    """
    if recipe.arms[recipe.arm].trains_alone:
        raise UserError(f"profile times the steps of Algorithm 1, and arm={recipe.arm} has a trainer of its own")
    recipe = recipe.model_copy(update={"designer": recipe.designer.model_copy(update={"burn_in_steps": 0})})
    period = recipe.value.every_steps
    steps = -(-steps // period) * period
    parts = begin(recipe)
    if parts.warm_up is not None:
        parts.warm_up()
    total_steps = recipe.budget.steps or steps
    optimizer = AdamW(parts.learner.named_parameters(), recipe.effective_optimizer, total_steps=total_steps)
    units: list[int] = []  # tokens or images, of each step
    # Before the learner's first step AdamW has no metric, so the first meta update that does anything is that of step r.
    first = period + 1
    with steady("           profile", first + steps, "steps") as done:

        def after_step(record: StepRecord) -> None:
            units.append(record.units)
            done(len(units))

        train(recipe, parts, optimizer, steps=range(first), after_step=after_step)
        with watching() as watch:
            train(recipe, parts, optimizer, steps=range(first, first + steps), after_step=after_step)
    read = sum(units[first:])
    phases = {name: 1e6 * seconds / read for name, seconds in watch.seconds.items()}
    ordinary = sum(phases[name] for name in ORDINARY)
    total = sum(phases.values())
    added = total - ordinary
    results = {
        "arm": recipe.arm,
        "unit": recipe.unit,
        "steps": steps,
        recipe.unit: read,
        "phases": phases,
        "added": {"microseconds": added, "ratio": added / ordinary},
        "meta_share": sum(cost for name, cost in phases.items() if name.startswith(_META)) / total,
        "threads": torch.get_num_threads(),
        "recipe": recipe.model_dump(mode="json"),
    }
    recipe.directory.mkdir(parents=True, exist_ok=True)
    write_json(recipe.directory / "profile.json", results)
    return results


def phase_rows(results: Json) -> list[list[str]]:
    """Return the phases as a table's cells, most expensive first; the first row names the columns."""
    unit, total = str(results["unit"]).removesuffix("s"), sum(results["phases"].values())
    phases = sorted(results["phases"].items(), key=lambda item: -item[1])
    rows = [[name, f"{cost:.2f}", f"{cost / total:.1%}"] for name, cost in phases]
    return [["phase", f"microseconds per {unit}", "share"], *rows]


def profile_table(results: Json) -> Table:
    """Return the phases as a table for a terminal."""
    speed = f"{1e6 / sum(results['phases'].values()):.4g} {results['unit']}/s"
    view = Table(title=f"{results['arm']}: {results['steps']} steps, {speed}")
    head, *rows = phase_rows(results)
    for column in head:
        view.add_column(column, justify="left" if column == "phase" else "right")
    for row in rows:
        view.add_row(*row)
    return view


def draw_profile(results: Json, file: Path) -> Path:
    """Plot the time of a step by phase."""
    figure, axis = pyplot().subplots(figsize=(7, 3.6), layout="constrained")
    draw_phases(axis, results, ("C0", "C1"))
    axis.set_title(f"{results['arm']}: where a step's time goes")
    return save_figure(figure, file)


def draw_phases(axis: Axes, results: Json, colours: Sequence[str], short: Callable[[str], str] = str) -> None:
    """Draw the phases as bars, the shortest at the bottom: those of ordinary pretraining, and hatched those that V adds.

    Args:
        axis: where to draw.
        results: of `profile`.
        colours: of the two kinds.
        short: shortens a name to what there is room for.
    """
    phases = results["phases"]
    names = sorted(phases, key=phases.get)
    for ordinary, colour, hatch in ((True, colours[0], ""), (False, colours[1], "//")):
        places = [place for place, name in enumerate(names) if (name in ORDINARY) is ordinary]
        label = "ordinary pretraining" if ordinary else f"added: {results['added']['ratio']:.1%} of it"
        if places:
            axis.barh(places, [phases[names[p]] for p in places], color=colour, hatch=hatch, label=label)
    axis.set_yticks(range(len(names)), [short(name) for name in names])
    axis.set_xlabel(f"microseconds per {short(results['unit']).removesuffix('s')}")
    axis.legend(loc="lower right", frameon=False)
