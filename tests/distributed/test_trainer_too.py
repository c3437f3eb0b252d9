"""The Trainer's adapter in one process and in two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.processes import distance, free_port

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent


def end_of(output, processes, *options):
    start = (["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []) + [
        str(HERE / "train_by_trainer.py"), str(output), str(processes), *options
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port()), "PYTHONPATH": f"{HERE.parent}"}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    subprocess.run([sys.executable, *start], check=True, env=environment, capture_output=True)
    return json.loads((output / "end.json").read_text())


def test_two_processes_are_one_and_go_on(tmp_path):
    one, two = (end_of(tmp_path / str(processes), processes) for processes in (1, 2))
    assert len(one["log"]) == len(two["log"]) == 6
    for mine, theirs in zip(one["log"], two["log"], strict=True):
        for name in ("loss", "grad_norm", "value"):
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=2e-4, abs=2e-4), name  # the log has four digits
    assert distance(torch.tensor(one["theta"]), torch.tensor(two["theta"])) < 1e-5
    assert distance(torch.tensor(one["phi"]), torch.tensor(two["phi"])) < 1e-4
    shutil.rmtree(tmp_path / "2" / "checkpoint-6")
    again = end_of(tmp_path / "2", 2, "--resume")
    assert again["theta"] == two["theta"]
    assert again["phi"] == two["phi"]
