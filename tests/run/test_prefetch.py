"""Reading ahead changes when batches are made, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from worlds import tiny_recipe, vision_recipe

from vpretrain import UserError, run_recipe
from vpretrain.errors import Paused
from vpretrain.run.checkpoint import checkpoints, load_checkpoint
from vpretrain.run.prefetch import Prefetched, _shut_down


class Numbers:
    """A stream of numbers, which ends in a mistake of the user."""

    def __init__(self):
        self.drawn = 0

    def next(self):
        if self.drawn == 5:
            raise UserError("no more numbers: add some")
        self.drawn += 1
        return [torch.tensor([self.drawn])]

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def test_the_cursor_is_that_of_what_was_handed_out():
    stream = Prefetched(Numbers(), 3, torch.device("cpu"))
    assert stream.state_dict() == {"drawn": 0}
    assert [int(stream.next()[0]) for _ in range(2)] == [1, 2]
    cursor = stream.state_dict()
    assert cursor == {"drawn": 2}
    assert int(stream.next()[0]) == 3
    stream.load_state_dict(cursor)
    assert stream.state_dict() == cursor
    assert [int(stream.next()[0]) for _ in range(3)] == [3, 4, 5]
    with pytest.raises(UserError, match=r"^no more numbers: add some$"):
        stream.next()


@pytest.mark.parametrize("kill", [False, True], ids=["returns", "is killed"])
def test_the_worker_ends_with_the_run(kill):
    """However the run ends, with batches in hand, and though the worker leaves all signals to it."""
    script = f"""if True:
        import os, signal, sys, torch
        sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
        from run.test_prefetch import Numbers
        from vpretrain.run.prefetch import Prefetched

        stream = Prefetched(Numbers(), 2, torch.device("cpu"))
        stream.next()
        if {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    # the worker holds these pipes too, so that they are read to their end only when it has ended
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == (-signal.SIGKILL if kill else 0), run.stderr


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_a_run_is_the_same_and_goes_on_where_it_was(tmp_path, tokenizer, modality):
    def recipe(name, **stream):
        changes = {"name": name, "arm": "v", "budget": {"steps": 6}, "stream": stream}
        return (
            tiny_recipe(tmp_path, tokenizer, **changes)
            if modality == "language"
            else vision_recipe(tmp_path, **changes)
        )

    run_recipe(recipe("plain"))
    run_recipe(recipe("ahead", prefetch=2))
    with pytest.raises(Paused):
        run_recipe(recipe("paused", prefetch=2), until=0.5)
    run_recipe(recipe("paused", prefetch=2), resume=True)
    plain, *others = (
        load_checkpoint(checkpoints(tmp_path / "runs" / name / "checkpoints")[-1])
        for name in ("plain", "ahead", "paused")
    )
    for groups, state in others:
        assert state["stream"] == plain[1]["stream"]
        for name, theta in plain[0]["learner"].items():
            assert torch.equal(theta, groups["learner"][name]), name


def test_the_worker_ends_also_where_its_own_thread_collects_the_garbage():
    """An executor's thread cannot wait for itself; there its end was an error."""
    ended = []
    with ProcessPoolExecutor(1) as worker:
        # A callback runs in the executor's thread.
        worker.submit(time.sleep, 0.2).add_done_callback(lambda done: ended.append(_shut_down(worker)))
    assert ended == [None]
