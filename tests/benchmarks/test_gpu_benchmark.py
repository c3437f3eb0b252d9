"""`make bench-gpu` without a GPU: its processes and figures, what a stop leaves, and what docs/scaling.md takes from it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import scaling
from benchmarks.calibration import GPU_FILE, Measured, measured
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import parts, shift
from benchmarks.gpu.processes import Clock, Unfinished, lines
from benchmarks.gpu.table import markdown
from benchmarks.gpu.worker import Drawn
from benchmarks.speed.figures import figures
from vpretrain.errors import UserError

ROOT = Path(__file__).parents[2]


def python(code):
    return [sys.executable, "-c", code]


def test_lines_come_as_they_are_printed():
    assert list(lines(python("print('one'); print('two')"), 30)) == ["one", "two"]


def test_a_process_is_stopped_at_its_limit_with_those_that_it_started():
    code = "import subprocess as s, time; print('one', flush=True); s.Popen(['sleep', '60']); time.sleep(60)"
    seen, start = [], time.monotonic()
    with pytest.raises(Unfinished, match="stopped after 2 s"):
        seen.extend(lines(python(code), 2))  # the other process holds the pipe, too
    assert time.monotonic() - start < 20


def test_a_process_that_fails_is_an_error_unless_its_code_is_accepted():
    with pytest.raises(UserError, match=r"failed \(exit code 1\)"):
        list(lines(python("raise SystemExit(1)"), 30))
    assert list(lines(python("raise SystemExit(1)"), 30, accept=(0, 1))) == []


def test_figures_equal_a_hand_calculation():
    told = {"read": 100, "phases": {"learner forward": 4.0, "construction": 1.0, "meta: tangent": 0.2}, "steps": 4,
            "updates": 1, "peak_bytes": 7}  # fmt: skip
    found = figures([1.0, 3.0, 2.0], [6.0], 4, told)
    assert found["seconds_a_meta_update"] == 6 - 2
    assert found["seconds_a_step"] == 2 + 4 / 4
    assert found["per_second"] == pytest.approx(100 / 3)
    assert found["microseconds"] == pytest.approx({"learner forward": 1e4, "construction": 2500, "meta: tangent": 500})
    assert found["added_over_ordinary"] == pytest.approx(0.3)


def test_drawn_batches_come_in_turn():
    stream = Drawn("abc", 2)
    assert [stream.next() for _ in range(3)] == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_outcomes_of_tests_are_read_from_what_pytest_prints(monkeypatch):
    printed = [
        "tests/gpu/test_a.py::test_one PASSED   [ 33%]",
        "tests/gpu/test_a.py::test_two[x] FAILED [ 66%]",
        "tests/gpu/test_a.py::test_three SKIPPED (needs a CUDA device) [100%]",
        "FAILED tests/gpu/test_a.py::test_two[x] - assert 1 == 2",
    ]
    monkeypatch.setattr(parts, "lines", lambda command, limit_s, accept: iter(printed))
    section, written = {}, []
    with pytest.raises(UserError, match="1 of 3 tests failed"):
        parts.run_tests(section, Clock(9), True, lambda: written.append(1))
    assert list(section["outcomes"].values()) == ["passed", "failed", "skipped"]
    assert section["failures"] == {"tests/gpu/test_a.py::test_two[x]": "assert 1 == 2"}
    assert len(written) == 3


def test_a_learner_that_fails_leaves_its_time_to_the_next(monkeypatch):
    def worker(command, limit_s):
        if "smollm2-135m" not in command:
            raise UserError("the process failed")
        yield json.dumps({"arm": "v", "tokens_a_step": 64, "per_second": 10.0, "peak_bytes": 2**30})

    monkeypatch.setattr(parts, "lines", worker)
    section = {}
    with pytest.raises(UserError, match=r"^qwen2.5-0.5b: the process failed$"):
        parts.run_speed(section, Clock(9), True, lambda: None)
    assert section == {"smollm2-135m": {"v": {"64": {"per_second": 10.0, "peak_bytes": 2**30}}}}


@pytest.mark.parametrize(("left", "expected"), [(0.0, Unfinished), (100.0, UserError)])
def test_a_run_that_is_killed_at_the_limit_has_not_failed(monkeypatch, left, expected):
    def killed(*_, **__):
        raise UserError("v failed (exit code -9)")

    monkeypatch.setattr(shift.shift, "require_data", lambda: None)
    monkeypatch.setattr(shift, "compare", killed)
    times = iter([999.0, left])
    with pytest.raises(expected):
        shift.run_shift({}, SimpleNamespace(left=lambda: next(times)), False, lambda: None)


def test_it_says_what_it_will_do_and_a_stop_or_failure_of_a_part_loses_nothing(tmp_path, capsys):
    file, limits = tmp_path / "new" / "gpu.json", []

    def first(section, clock, rehearsed, write):
        section["found"] = 1
        write()
        assert json.loads(file.read_text())["first"] == {"found": 1}
        limits.append(clock.left())
        raise Unfinished("stopped after 5 s")

    def second(section, clock, rehearsed, write):
        raise UserError("no memory")

    def third(section, clock, rehearsed, write):
        limits.append(clock.left())

    pieces = [bench.Part("first", 5, "one thing", first), bench.Part("second", 5, "another", second)]
    report = bench.measure([*pieces, bench.Part("third", None, "a last", third)], rehearsed=True, file=file)
    said = capsys.readouterr().out
    assert (
        said.index("first (at most 5 s): one thing") < said.index("third (what is left): a last") < said.index("first:")
    )
    assert "at most 9 minutes" in said
    assert [part["outcome"] for part in report["parts"].values()] == [
        "stopped after 5 s",
        "failed: no memory",
        "finished",
    ]
    assert json.loads(file.read_text()) == json.loads(json.dumps(report))
    assert limits[0] <= 5
    assert 500 < limits[1] < 540  # all that is left


def test_without_cuda_it_is_skipped_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    bench.main([])
    assert capsys.readouterr().out.count("\n") == 1


def test_a_rehearsal_writes_nothing_unless_asked(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    asked = []

    def measure(pieces, *, rehearsed, file):
        asked.append((rehearsed, file))
        return {"device": {"name": "the CPU"}, "versions": {"torch": "2"}, "parts": {}}

    monkeypatch.setattr(bench, "measure", measure)
    bench.main(["--cpu"])
    bench.main(["--cpu", f"--output={tmp_path}/kept.json"])
    assert asked == [(True, None), (True, tmp_path / "kept.json")]
    assert "results: none" in capsys.readouterr().out


# A step of 8 micro-batches of 1,000 tokens in 2 seconds, at 247.25 TFLOPS: a quarter of an H100's 989.
STEP = {
    "one-hot": {"8000": {"micro_batches": 8, "seconds_a_step": 2.0, "flops_a_micro_batch": {"step": 2 * 247.25e12 / 8}}},
    "v-paper": {
        "16384": {"error": "CUDA out of memory"},
        "8000": {
            "micro_batches": 8,
            "read_a_step": 8000,
            "flops_a_micro_batch": {"designer": 16.75e12, "feedback": 247.25e12, "value": 33.5e12},
            "microseconds": {"construction": 2000.0, "meta: tangent": 100.0, "meta: feedback gradient": 25.0},
        },
    },
}  # fmt: skip


def written(path, name="NVIDIA H100 80GB HBM3", arms=STEP):
    path.write_text(json.dumps({"device": {"name": name}, "speed": {"qwen2.5-0.5b": arms}}))
    return path


def test_what_is_measured_equals_a_hand_calculation(tmp_path):
    found = measured(written(tmp_path / "gpu.json"))
    assert found.gpu == "NVIDIA H100 80GB HBM3"
    assert found.utilisation == pytest.approx(0.25)
    # fp32 at 16.75 TFLOPS: the designer takes 1 s per micro-batch, 1,000 us per token; an update 1 s in bf16 and 2 s in fp32.
    assert found.over_floor["designer"] == pytest.approx(2.0)
    assert found.over_floor["meta"] == pytest.approx(125e-6 * 8000 * 4 / 3)


def test_without_the_file_or_before_it_is_whole_or_on_an_unknown_gpu_nothing_is_measured(tmp_path):
    assert measured(tmp_path / "none.json") is None
    assert measured(written(tmp_path / "early.json", arms={"one-hot": STEP["one-hot"]})) is None
    assert measured(written(tmp_path / "other.json", name="NVIDIA B999")) is None


def test_measured_figures_take_the_place_of_assumptions():
    assumed, found = (scaling.report(gpu) for gpu in (None, Measured("H100", 0.2, {"designer": 2.62, "meta": 2.8})))
    assert (assumed["assumed"]["utilisation"], found["assumed"]["utilisation"]) == (0.4, 0.2)
    for row, row_too in zip(assumed["plans"], found["plans"], strict=True):
        assert row_too["learner_ms"] == pytest.approx(2 * row["learner_ms"])
        assert row_too["communication_ms"] == row["communication_ms"]
        assert row_too["meta_ms"] > row["meta_ms"]
    assert found["over_floor"]["vision"] == assumed["over_floor"]["vision"]
    basis, *_ = scaling.tables(found)
    assert "on one H100: steps reach 20 % of the peak" in basis
    assert "2.62 and 2.80 times" in basis
    assert "passes reach 40 %" in scaling.tables(assumed)[0]


def test_the_table_has_a_line_per_arm_and_size():
    whole = {"per_second": 100.0, "added_over_ordinary": None, "peak_bytes": 2**31}
    added = {"per_second": 95.0, "added_over_ordinary": 0.05, "peak_bytes": 3 * 2**30}
    report = {
        "device": {"name": "a GPU"},
        "versions": {"torch": "2.13"},
        "tests": {"outcomes": {"a": "passed", "b": "skipped", "c": "passed"}},
        "speed": {"tiny": {"one-hot": {"64": whole}, "v": {"64": added, "128": {"error": "CUDA out of memory"}}}},
        "fsdp2": {"tiny": {"v": {"64": added}}},
    }
    text = markdown(report)
    assert "a GPU, torch 2.13. Tests: 2 passed, 1 skipped." in text
    assert "| v | 64 | 95 | 0.950 | 5.0% | 3.0 |" in text
    assert "| v | 128 | CUDA out of memory | - | - | - |" in text
    assert "| tiny, FSDP2: arm |" in text


def test_the_documentation_says_whether_a_gpu_has_run_it():
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("scaling.md", "speed.md")}
    for page in pages.values():
        assert ("No GPU has run `make bench-gpu` so far" in page) == (not GPU_FILE.exists())
    if GPU_FILE.exists():
        assert markdown(json.loads(GPU_FILE.read_text(encoding="utf-8"))) in pages["speed.md"]
