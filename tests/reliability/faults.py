"""Runs that are stopped, gone on with, and looked at, for either modality."""

from __future__ import annotations

import signal

import torch
from worlds import stop, tiny_recipe, vision_recipe

from vpretrain.modality import modality_of
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.run.directory import prepare_directory
from vpretrain.run.session import Session

MODALITIES = ("language", "vision")
STEPS = 6


def small_recipe(modality, root, tokenizer, **changes):
    """Six steps, a meta update every other one, two micro-batches a step."""
    changes = {"stream": {"accumulation": 2}, **changes}
    return tiny_recipe(root, tokenizer, **changes) if modality == "language" else vision_recipe(root, **changes)


def session_of(recipe, *, resume=False):
    """A run as another process would begin it, or go on with it."""
    prepare_directory(recipe, resume=resume, overwrite=not resume)
    torch.manual_seed(99 if resume else recipe.seed)  # another process would have another state
    return Session(recipe, modality_of(recipe).assemble(recipe), resume=resume)


def stopped_after(recipe, stops, number=signal.SIGTERM):
    """The run, stopped by a signal after each of these steps, and gone on with to its end."""
    session = session_of(recipe)
    for step in stops:
        assert stop(session, step, number).exit_code == 128 + number
        session = session_of(recipe, resume=True)
    return session.run()


def end_of(recipe):
    """What the last checkpoint of a finished run holds, the clock apart."""
    groups, state = load_checkpoint(checkpoints(recipe.directory / "checkpoints")[-1])
    state["budget"].pop("seconds")
    return groups, state


def assert_same_end(one, other):
    """Bit for bit."""
    (groups, state), (groups_too, state_too) = one, other
    assert state == state_too
    assert groups.keys() == groups_too.keys()
    for group, tensors in groups.items():
        assert tensors.keys() == groups_too[group].keys()
        assert all(torch.equal(tensors[name], groups_too[group][name]) for name in tensors), group
