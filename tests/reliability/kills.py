"""`python kills.py RECIPE KILLS SEED`: a run is killed in forks of this process, which has imported everything.

SIGKILL comes after a random time; then the newest checkpoint must load, and the run goes on from it. When it ends, its end must
be that of a run which nobody killed, and it begins anew. Prints what happened, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time

import torch

from vpretrain.modality import modality_of
from vpretrain.recipe import load_recipe
from vpretrain.run import run_recipe
from vpretrain.run.checkpoint import checkpoints, damage, load_newest

torch.set_num_threads(1)


def forked(recipe, *, resume):
    """A child that makes the run, or goes on with it."""
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        code = 1
        try:
            run_recipe(recipe, resume=resume, overwrite=not resume)
            code = 0
        finally:
            os._exit(code)


def ended(child, within):
    """Whether the child comes to its end within so many seconds; else it is killed."""
    stop = time.monotonic() + within
    while time.monotonic() < stop:
        if (found := os.waitpid(child, os.WNOHANG))[0]:
            assert found[1] == 0, f"the run failed: {found[1]}"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def end_of(recipe):
    groups, state = load_newest(recipe.directory / "checkpoints")
    state["budget"].pop("seconds")
    return groups, state


def same(one, other):
    return one[1] == other[1] and all(
        torch.equal(tensors[name], other[0][group][name]) for group, tensors in one[0].items() for name in tensors
    )


def main(file: str, kills: int, seed: int) -> None:
    recipe = load_recipe(file)
    modality_of(recipe).assemble(recipe)  # imports all, and draws the scenes
    root = recipe.directory / "checkpoints"
    start = time.monotonic()
    assert ended(forked(recipe, resume=False), 120)
    whole, longest = end_of(recipe), time.monotonic() - start
    draw = random.Random(seed)
    done = {"kills": 0, "loaded": 0, "none yet": 0, "half-written": 0, "ends": 0, "equal ends": 0}
    resume = False
    while done["kills"] < kills:
        if ended(forked(recipe, resume=resume), draw.uniform(0, longest)):
            done["ends"] += 1
            done["equal ends"] += same(end_of(recipe), whole)
            resume = False
            continue
        done["kills"] += 1
        done["half-written"] += any(root.glob(".writing-*"))
        resume = bool(checkpoints(root))
        if resume:
            assert not any(map(damage, checkpoints(root)))
            load_newest(root)
            done["loaded"] += 1
        else:
            done["none yet"] += 1
    assert ended(forked(recipe, resume=resume), 120)  # the last one killed goes on to its end
    done["ends"] += 1
    done["equal ends"] += same(end_of(recipe), whole)
    print(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
