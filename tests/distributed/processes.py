"""Several processes on this machine: forked from the test (quick), or started by torchrun as a user would."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback

import torch

from vpretrain import distributed
from vpretrain.run.directory import prepare_directory
from vpretrain.run.session import Session
from vpretrain.run.train import begin

NUMBERS = (
    "loss", "grad_norm", "value", "g_down_norm", "regulariser", "designer_grad_norm", "alpha", "tilt", "mask", "strength",
    "radius",
)  # fmt: skip


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def together(processes, act, *arguments):
    """What `act` returns in each of so many processes that have met; raises what the first one that failed has raised."""
    if processes == 1:
        return [act(*arguments)]
    fork, port = multiprocessing.get_context("fork"), free_port()
    pipes, children = [], []
    for rank in range(processes):
        here, there = fork.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        children.append(fork.Process(target=_child, args=(there, environment, act, arguments)))
        children[-1].start()
        there.close()
        pipes.append(here)
    outcomes = [pipe.recv() if pipe.poll(120) else (None, "said nothing for two minutes") for pipe in pipes]
    for child in children:
        child.join(20)
        child.kill()
    failures = [failure for _, failure in outcomes if failure]
    assert not failures, "\n".join(failures)
    return [result for result, _ in outcomes]


def _child(pipe, environment, act, arguments):
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        with distributed.process_group():
            pipe.send((act(*arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(0)


def session_of(recipe, *, resume=False):
    """A run as its processes would begin it, or go on with it."""
    distributed.on_rank_0(lambda: prepare_directory(recipe, resume=resume, overwrite=not resume))
    return Session(recipe, begin(recipe), resume=resume)


def run(recipe, resume=False):
    """To the end."""
    return session_of(recipe, resume=resume).run()


def torchrun(*arguments, processes=2, **options):
    """`vpretrain` in several processes, started as a user would start them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "-m",
        "vpretrain",
        *arguments,
    ]
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(command, **kwargs, **options)


def distance(one, other):
    """The largest difference of two tensors' numbers, relative to the first one's norm."""
    return float((one - other).double().norm() / one.double().norm().clamp_min(torch.finfo(torch.float32).tiny))
