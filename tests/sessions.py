"""Runs in this process, for either modality: begun, stopped, gone on with, and looked at."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch

from vpretrain.errors import Interrupted
from vpretrain.modality import modality_of
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.run.directory import prepare_directory
from vpretrain.run.hooks import Hook
from vpretrain.run.session import Session


def session_of(recipe, *, resume=False, change=lambda parts: None):
    """A run as another process would begin it, or go on with it; `change` is given its parts."""
    prepare_directory(recipe, resume=resume, overwrite=not resume)
    torch.manual_seed(99 if resume else recipe.seed)  # another process would have another state
    parts = modality_of(recipe).assemble(recipe)
    change(parts)
    return Session(recipe, parts, resume=resume)


def stop(session, step: int | None, number: int = signal.SIGTERM) -> Interrupted:
    """Run until a signal comes after that step; None: it comes to another process. Returns what the run says of it."""

    class Stopping(Hook):
        def after_step(self, session, record):
            if record.step == step:
                os.kill(os.getpid(), number)

    session.hooks.append(Stopping())
    with pytest.raises(Interrupted) as caught:
        session.run()
    return caught.value


def stopped_after(recipe, stops, number=signal.SIGTERM):
    """The run, stopped by a signal after each of these steps, and gone on with to its end; its session and its result."""
    session = session_of(recipe)
    for step in stops:
        told = stop(session, step, number)
        assert "--resume" in str(told)
        assert told.exit_code == 128 + number
        session = session_of(recipe, resume=True)
    return session, session.run()


def trajectory(recipe, change=lambda parts: None):
    """Runs a recipe; the learner's parameters at the end, what the learner read, and the parts of the run."""
    seen = []

    def watched(parts):
        change(parts)
        draw = parts.stream.next
        parts.stream.next = lambda: seen.append(draw()) or seen[-1]

    session = session_of(recipe, change=watched)
    session.run()
    return {name: p.detach().clone() for name, p in session.parts.learner.named_parameters()}, seen, session.parts


def start_of(recipe):
    """The learner's parameters before a run."""
    return {name: p.detach().clone() for name, p in session_of(recipe).parts.learner.named_parameters()}


def apart(one, other, start):
    """The distance of two ends of the learner, relative to the distance of the first from the start; all parameters differ."""
    equal = [name for name in one if torch.equal(one[name], other[name])]
    assert not equal, equal
    between, gone = (sum(float((a[n] - b[n]).square().sum()) for n in a) for a, b in ((one, other), (one, start)))
    return math.sqrt(between / gone)


def held(checkpoint):
    """Tensors and state of a checkpoint, the clock apart."""
    groups, state = load_checkpoint(checkpoint)
    state["budget"].pop("seconds")
    return {name: dict(tensors) for name, tensors in groups.items()}, state


def end_of(recipe):
    """What the last checkpoint of a finished run holds."""
    return held(checkpoints(recipe.directory / "checkpoints")[-1])


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def assert_same_end(one, other):
    """Bit for bit."""
    (groups, state), (groups_too, state_too) = one, other
    assert state == state_too
    assert groups.keys() == groups_too.keys()
    for group, tensors in groups.items():
        assert_bit_equal(tensors, groups_too[group])
