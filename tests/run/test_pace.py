"""Warnings of an uneven pace, from logs whose times are known."""

from __future__ import annotations

import pytest

from vpretrain.method.step import Schedule
from vpretrain.run.pace import uneven


def said(seconds, *, tokens=None, every_steps=1000):
    """The warning about steps of so many seconds; step 0 has a meta update, and is the first."""
    lines, spent, read = [], 0.0, 0
    for step, took in enumerate(seconds):
        spent, read = spent + took, read + (tokens[step] if tokens else 512)
        lines.append({"step": step, "seconds": spent, "tokens": read})
    return uneven(lines, "tokens", Schedule(every_steps).updates)


def test_slow_steps_are_told_with_their_share_of_the_time():
    assert said([9.0, *[8.0] * 3, *[2.0] * 20]) == (
        "3 of 23 steps took more than twice the usual 2 seconds, and 38% of the time: something else used the machine, or "
        "the stream was slow (run again alone; --rounds 4 lets a comparison's arms take turns)"
    )


@pytest.mark.parametrize(
    ("seconds", "settings"),
    [
        ([2.0] * 24, {}),
        ([90.0, *[2.0] * 23], {}),  # the first step
        ([2.0, 8.0, 8.0, *[2.0] * 21], {}),  # two are an accident
        ([2.0, *[5.0] * 3, *[2.0] * 80], {}),  # little of the time
        ([2.0] * 3 + [8.0] * 4, {}),  # too few to know what is usual
        ([0.02, *[0.08] * 4, *[0.02] * 20], {}),  # short steps vary
        ([2.0 if step % 8 else 9.0 for step in range(40)], {"every_steps": 8}),  # meta updates take long
        ([2.0, *[8.0] * 4, *[2.0] * 20], {"tokens": [512, *[2048] * 4, *[512] * 20]}),  # and so do long texts
    ],
)
def test_what_is_slow_by_design_or_by_accident_is_no_reason_to_warn(seconds, settings):
    assert said(seconds, **settings) is None


def test_meta_updates_count_where_they_are_not_expected():
    assert "4 of 39 steps" in said([2.0 if step % 8 else 9.0 for step in range(40)])
