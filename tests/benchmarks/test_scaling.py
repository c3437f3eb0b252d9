"""docs/scaling.md: its tables are those of benchmarks/scaling.json, and that is what the code computes now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.calibration import calibration, measured
from vpretrain.scaling import estimate

ROOT = Path(__file__).parents[2]


def test_the_documents_tables_are_what_the_code_computes():
    saved = json.loads((ROOT / "benchmarks/scaling.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(scaling.report(measured()))) == saved
    document = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    for table in scaling.tables(saved):
        assert table in document


def test_what_is_measured_is_what_the_speed_benchmark_found():
    speed = json.loads((ROOT / "benchmarks/speed/results.json").read_text(encoding="utf-8"))
    found, gpu = calibration(speed), measured()
    if gpu is not None:
        found["language"] = gpu.over_floor
        assert pytest.approx(gpu.utilisation, rel=0.1) == estimate.UTILISATION, "bring estimate.UTILISATION up to date"
    assert (None if gpu is None else gpu.gpu) == estimate.GPU, "bring estimate.GPU up to date"
    for modality, over in found.items():
        assert estimate.OVER_FLOOR[modality] == pytest.approx(over, rel=0.1), "bring estimate.OVER_FLOOR up to date"
