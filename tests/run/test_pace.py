"""Warnings of an uneven pace, from logs whose times are known."""

from __future__ import annotations

import pytest

from vpretrain.run.pace import uneven


def log(seconds, *, tokens=None, updates=()):
    lines, spent, read = [], 0.0, 0
    for step, took in enumerate(seconds):
        spent, read = spent + took, read + (tokens[step] if tokens else 512)
        lines.append({"step": step, "seconds": spent, "tokens": read} | ({"value": 1.0} if step in updates else {}))
    return lines


def test_slow_steps_are_told_with_their_share_of_the_time():
    lines = log([9.0, *[8.0] * 3, *[2.0] * 20])
    assert uneven(lines, "tokens") == (
        "3 of 23 steps took more than twice the usual 2 seconds, and 38% of the time: something else used the machine (run "
        "again alone; --rounds 4 lets the arms of a comparison take turns)"
    )


@pytest.mark.parametrize(
    "lines",
    [
        log([2.0] * 24),
        log([90.0, *[2.0] * 23]),  # the first step
        log([2.0, 8.0, 8.0, *[2.0] * 21]),  # two are an accident
        log([2.0, *[5.0] * 3, *[2.0] * 80]),  # little of the time
        log([2.0] * 3 + [8.0] * 4, updates=()),  # too few to know what is usual
        log([0.02, *[0.08] * 4, *[0.02] * 20]),  # short steps vary
        log([2.0 if step % 8 else 9.0 for step in range(32)], updates=range(0, 32, 8)),  # meta updates take long
        log([2.0, *[8.0] * 4, *[2.0] * 20], tokens=[512, *[2048] * 4, *[512] * 20]),  # and so do long texts
    ],
)
def test_what_is_slow_by_design_or_by_accident_is_no_reason_to_warn(lines):
    assert uneven(lines, "tokens") is None
