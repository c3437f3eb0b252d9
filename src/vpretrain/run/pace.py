"""How even a run's pace was: what else uses the machine shows as steps that take far longer than most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from vpretrain.types import Json

_LEAST, _SLOW_STEPS = 10, 3  # steps to judge a pace by, and the number of slow ones from which it is uneven
_SHORT = 0.1  # seconds; shorter steps vary by themselves
_TIMES, _MUCH = 2, 0.15  # a slow step takes so many times as long as most; such a share of the time is worth a warning


def uneven(lines: Sequence[Json], unit: str, updates: Callable[[int], bool]) -> str | None:
    """Return a warning if steps that are slow by chance took much of a run's time; else None.

    The first step and those with a meta update are left out: they are slow by design.

    Args:
        lines: of the log of steps.
        unit: what a step reads, such as tokens: a step that reads more may take longer.
        updates: whether a step, by its number, has a meta update.
    """
    steps = [
        (after["seconds"] - before["seconds"], after[unit] - before[unit])
        for before, after in pairwise(lines)
        if not updates(after["step"])
    ]
    if len(steps) < _LEAST:
        return None
    usual, usual_each = median(took for took, _ in steps), median(took / max(1, read) for took, read in steps)
    slow = [took for took, read in steps if took > _TIMES * usual and took > _TIMES * usual_each * read]
    share = sum(slow) / sum(took for took, _ in steps)
    if usual < _SHORT or len(slow) < _SLOW_STEPS or share < _MUCH:
        return None
    return (
        f"{len(slow)} of {len(steps)} steps took more than twice the usual {usual:.3g} seconds, and {share:.0%} of the time: "
        "something else used the machine, or the stream was slow (run again alone; --rounds 4 lets a comparison's arms take "
        "turns)"
    )
