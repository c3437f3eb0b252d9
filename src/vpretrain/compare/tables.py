"""The presentation of a comparison: a table and remarks."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from vpretrain.compare.alike import alike
from vpretrain.compare.results import pairs
from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.tables import cells, grid
from vpretrain.types import Json

SECONDS_TOLERANCE = 0.03  # relative difference of training times that still count as equal
FEW_UPDATES = 10  # meta updates below which a designer is close to its start
SLOW = 0.7  # fraction of the baseline's throughput; the lowest of V undisturbed is 0.72 (benchmarks/gsm8k.json)


def table(results: Json, recipe: Recipe) -> Table:
    """Return the results as a table for a terminal."""
    return grid(title(results, recipe), cells(results["arms"], recipe))


def title(results: Json, recipe: Recipe) -> str:
    """Return the table's title: what was measured, after equal what."""
    matched = "training time" if by_minutes(results["arms"], recipe) else "steps"
    return f"{recipe.name}: {modality_of(recipe).metrics.headline(recipe)} after equal {matched}"


def remarks(results: Json, recipe: Recipe) -> list[str]:
    """Return remarks for readers of the table: differences with intervals, unequal times, idle designers."""
    metrics = modality_of(recipe).metrics
    trained = {name: arm for name, arm in results["arms"].items() if arm["steps"]}
    seeds = len(results["seeds"])
    designed = {arm.name for arm in recipe.arms.values() if arm.designer}
    over = f", paired over {metrics.cases_in_words}{of_seeds(seeds)}"
    parts = [("", results["differences"], over)]
    apart = {f"after {found['at']:,.0f} {axis}, ": found for axis, found in results.get("matched", {}).items()}
    apart |= {f"domain {domain}, ": found for domain, found in results.get("by_domain", {}).items()}
    parts += [(where, {key: found[key]["differences"] for key in results["of"]}, "") for where, found in apart.items()]
    lines = [
        f"{where}{name} minus {other}: {interval(differences[key][name][other], unit)}{paired}"
        for where, differences, paired in parts
        for key, unit in results["of"].items()
        for name, other in pairs(trained, recipe.baseline)
        # What is read off a curve of the same training is interpolation.
        if not (where.startswith("after") and alike(results, recipe, name, other))
    ]
    lines += [
        f"{name} minus {other}, on {metrics.paired[key].measured_on}: "
        f"{interval(found[name][other], metrics.paired[key].unit)}"
        for key, found in results["differences"].items()
        for name, other in pairs(trained, recipe.baseline)
        if key not in results["of"] and other == recipe.baseline
    ]
    for name, arm in trained.items():
        if arm["meta_updates"]:
            means = "".join(f"{key.replace('_', ' ')} {arm[key]:.3f}, " for key in arm if key.startswith("mean_"))
            lines.append(f"{name}: {means}{arm['meta_updates']:g} meta update{'' if arm['meta_updates'] == 1 else 's'}")
        if "warning" in arm:
            lines.append(f"warning: {name}: {arm['warning']}")
        if arm["arm"] in designed and 0 < arm["meta_updates"] < FEW_UPDATES:
            lines.append(
                f"warning: {name} had under {FEW_UPDATES} meta updates, so its designer is hardly trained; raise the budget"
            )
    return lines + _disturbances(trained, recipe)


def by_minutes(arms: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether the budget's minutes, and not its steps, ended some or all of the runs."""
    return bool(recipe.budget.minutes) and any(run["steps"] != recipe.budget.steps for run in _runs(arms))


def unequal(arms: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether arms with the same minutes trained for different times, since a run ends with a whole step."""
    seconds = [run["seconds"] for run in _runs(arms)]
    return by_minutes(arms, recipe) and max(seconds) > (1 + SECONDS_TOLERANCE) * min(seconds)


def _runs(arms: Mapping[str, Json]) -> list[Json]:
    """Return the runs that trained, one per seed."""
    return [run for arm in arms.values() if arm["steps"] for run in arm.get("runs", [arm])]


def _disturbances(trained: Mapping[str, Json], recipe: Recipe) -> list[str]:
    """Return warnings against a comparison by time."""
    lines, rate, budget = [], f"{recipe.unit}_per_s", recipe.budget
    if unequal(trained, recipe):
        why, remedy = "a run ends with a step", "raise budget.minutes"
        if any(run["steps"] == budget.steps for run in _runs(trained)):
            why, remedy = "budget.steps ended some of the runs", "leave it out"
        lines.append(f"warning: training times differ by more than {SECONDS_TOLERANCE:.0%}, as {why}; {remedy}")
    base = trained.get(recipe.baseline, {}).get(rate)
    steered = {arm.name for arm in recipe.arms.values() if arm.steered}
    for name, arm in trained.items():
        if base and arm["arm"] in steered and arm[rate] < SLOW * base:
            lines.append(
                f"warning: {name} read {recipe.unit} at {arm[rate] / base:.0%} of {recipe.baseline}'s rate: its meta updates "
                "take long beside such short steps (vpretrain profile shows how long), or something else used the machine "
                "(run again alone, or with --rounds 4)"
            )
    return lines


def of_seeds(count: int) -> str:
    """Return in how many seeds cases were measured, to be written after them, and what one seed cannot show."""
    return f" and {count} seeds" if count > 1 else " of one seed, which says nothing about other seeds"


def signed(difference: Mapping[str, float]) -> tuple[str, str, str]:
    """Return a difference and the ends of its interval as text."""
    # Rounded first, and 0 added: else a difference that rounds to 0 may have a minus.
    mean, low, high = (f"{round(difference[key], 4) + 0.0:+.4f}" for key in ("mean", "low", "high"))
    return mean, low, high


def interval(difference: Mapping[str, float], of: str) -> str:
    """Format a difference with its unit, and p if it is corrected for the number of differences."""
    mean, low, high = signed(difference)
    text = f"{mean} {of}, 95 % interval [{low}, {high}]"
    return text + (f", p = {difference['p_holm']:.2g}" if "p_holm" in difference else "")
