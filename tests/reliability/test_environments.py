"""Where runs live: homes, caches, permissions, outputs, paths, clocks, and other processes that end."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from sessions import assert_same_end, end_of
from transformers import AutoModel, AutoModelForCausalLM
from worlds import small_recipe

from vpretrain import UserError, pretrained, run_recipe
from vpretrain.cli.parser import main
from vpretrain.compare.compare import compare
from vpretrain.config import BudgetConfig
from vpretrain.console import console
from vpretrain.errors import Paused
from vpretrain.files import read_lines, whole_directory, write_whole
from vpretrain.modality import MODALITIES
from vpretrain.recipe import save_recipe
from vpretrain.run.budget import Budget
from vpretrain.run.export import export
from vpretrain.run.hooks import Hook
from vpretrain.run.lock import LOCK
from vpretrain.vision.data.scenes import rendered

pytestmark = pytest.mark.reliability

ROOT = Path(__file__).parents[2]
# Nothing can be made there, not even by root.
NOWHERE = dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), "/proc/nowhere")


def started(command, *, shell="", **environment):
    """`vpretrain COMMAND` in a process of its own, in bash, with these variables besides the path; `shell` follows it."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "vpretrain", *command]
    script = f'set -o pipefail; "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *words],
        env=own | environment,
        capture_output=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(params=MODALITIES)
def modality(request, many):
    """Vision in the long form."""
    if request.param == "vision" and many(True, False):
        pytest.skip("in the long form")
    return request.param


def saved(recipe, root):
    save_recipe(recipe, root / "recipe.yaml")
    return str(root / "recipe.yaml")


@pytest.mark.promise("21 without a home, or with one that cannot be written, a run on local files takes its course")
@pytest.mark.parametrize("home", [NOWHERE, {}], ids=["read-only home and caches", "no home"])
def test_a_run_without_a_home(tmp_path, tokenizer, fault, many, modality, home):
    if not home and many(True, False):
        pytest.skip("in the long form")
    if not home and modality == "vision":
        pytest.skip("it would keep its scenes in the home that the system knows")
    recipe = small_recipe(modality, tmp_path, tokenizer, budget={"steps": 2})
    with fault():
        ended = started(["run", saved(recipe, tmp_path)], **home)
        assert ended.returncode == 0, ended.stderr.decode()
        assert (recipe.directory / "result.json").exists()


@pytest.mark.promise("21 without a home, or with one that cannot be written, a run on local files takes its course")
def test_a_cache_that_is_needed_and_cannot_be_made_is_named(monkeypatch, tmp_path, fault):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    with (
        fault(),
        pytest.raises(UserError, match=r"cannot write to the cache /proc/nowhere/vpretrain: .*XDG_CACHE_HOME"),
    ):
        pretrained.resolve("pypi:a-package", {"a-package": lambda folder, target: None})
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with fault(), pytest.raises(UserError, match="there is no home directory for the cache: set XDG_CACHE_HOME"):
        pretrained.cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache() == tmp_path / "vpretrain"


def test_of_two_processes_that_convert_the_same_weights_the_first_wins(monkeypatch, tmp_path):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rename = Path.rename

    def after_the_first(path, target):
        Path(target).mkdir()
        (Path(target) / "config.json").write_text("of the first")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", after_the_first)
    of_second = {"a-package": lambda folder, target: (target / "config.json").write_text("of the second")}
    found = Path(pretrained.resolve("pypi:a-package", of_second))
    assert (found / "config.json").read_text() == "of the first"
    assert list(found.parent.iterdir()) == [found]


@pytest.mark.promise("21 without a home, or with one that cannot be written, a run on local files takes its course")
def test_scenes_that_cannot_be_kept_are_rendered_all_the_same(monkeypatch, capsys, fault):
    settings = {"seed": 921, "scenes": 2, "cameras": 1, "size": 16}
    kept = rendered(**settings)
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE["XDG_CACHE_HOME"])
    with fault():
        again = rendered(**settings)
        assert kept.keys() == again.keys()
        assert all(torch.equal(kept[name], again[name]) for name in kept)
        told = " ".join(capsys.readouterr().err.split())
        assert "scenes: cannot write to the cache /proc/nowhere/vpretrain, so they are rendered in each run" in told


@pytest.mark.promise("22 all that a run, an export and a report write has the permissions that the umask gives")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, tokenizer, fault, modality, mask):
    recipe, exported = small_recipe(modality, tmp_path, tokenizer, budget={"steps": 2}), tmp_path / "exported"
    before = os.umask(mask)
    try:
        run_recipe(recipe)
        assert main(["report", str(recipe.directory)]) == 0
        os.umask(0o022)
        export(str(recipe.directory), str(exported))
    finally:
        os.umask(before)
    with fault():
        for root, umask in ((recipe.directory, mask), (exported, 0o022)):
            parts = [path for path in root.rglob("*") if path.name != LOCK]
            assert any(path.suffix == ".safetensors" for path in parts)
            for path in parts:
                assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


PLAIN_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.promise("23 an output that nobody reads, or that lacks a letter, ends no run and leaves no traceback")
@pytest.mark.parametrize(
    ("shell", "environment", "short"),
    [
        ("| head -1", {}, True),
        ("| true", {}, False),
        (">&-", {}, True),
        ("2>&-", {}, False),
        ("", {"LC_ALL": "C"}, False),
        ("", PLAIN_ASCII, True),
        ("", {"PYTHONIOENCODING": "ascii"}, False),
    ],
    ids=["head", "nobody", "no stdout", "no stderr", "locale C", "locale C without UTF-8", "ASCII"],
)
def test_outputs_of_all_kinds(tmp_path, tokenizer, fault, many, modality, shell, environment, short):
    if not short and many(True, False):
        pytest.skip("in the long form")
    if modality == "vision" and not shell:
        pytest.skip("it prints no name of the user's, and no other letter that an encoding may lack")
    path = Path(saved(small_recipe(modality, tmp_path, tokenizer), tmp_path))
    path.write_text(path.read_text(encoding="utf-8").replace("domain: sums", "domain: Rätsel ∑"), encoding="utf-8")
    with fault():
        ended = started(["inspect", str(path)], shell=shell, **environment)
        assert b"Traceback" not in ended.stderr, ended.stderr.decode()
        assert b"Exception" not in ended.stderr, ended.stderr.decode()
        if not shell.startswith("|"):
            assert ended.returncode == 0, ended.stderr.decode()
            assert bool(ended.stdout) == (shell != ">&-")


@pytest.mark.promise("23 an output that nobody reads, or that lacks a letter, ends no run and leaves no traceback")
def test_a_run_goes_on_though_nobody_reads_its_progress(tmp_path, tokenizer, monkeypatch, fault):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sys, "stderr", Gone())
    recipe = small_recipe("language", tmp_path, tokenizer, budget={"steps": 2})
    with fault():
        assert run_recipe(recipe).warning  # so that something was printed
        assert console.quiet
    console.quiet = False


@pytest.mark.promise("24 paths with letters of any script, and names up to the system's limit, are as good as others")
@pytest.mark.parametrize(
    ("folder", "name"), [("ünï—模型 мир", "tiny"), ("n" * 255, "n" * 255)], ids=["scripts", "long"]
)
def test_paths_of_all_kinds(tmp_path, tokenizer, fault, modality, folder, name):
    root = tmp_path / folder
    root.mkdir()
    recipe = small_recipe(modality, root, tokenizer, budget={"steps": 2}, name=name, output=str(root / folder))
    with fault():
        path = saved(recipe, root)
        assert main(["run", path]) == 0
        assert main(["report", str(recipe.directory), "--output", str(root / "report.html")]) == 0
        assert main(["export", str(recipe.directory), str(root / folder / "exported")]) == 0
        load = AutoModelForCausalLM if modality == "language" else AutoModel
        load.from_pretrained(root / folder / "exported")


@pytest.mark.promise("25 a directory of a run may be moved, and is resumed, reported and exported where it is then")
def test_a_run_that_has_been_moved(tmp_path, tokenizer, fault, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer, arm="v")
    run_recipe(recipe)
    whole = end_of(recipe)
    with pytest.raises(Paused):
        run_recipe(recipe, overwrite=True, until=0.5)
    moved = tmp_path / "elsewhere" / "other"
    moved.parent.mkdir()
    recipe.directory.rename(moved)
    with fault():
        changed = recipe.model_copy(update={"output": str(moved.parent), "name": moved.name})
        run_recipe(changed, resume=True)
        assert_same_end(end_of(changed), whole)
    again = tmp_path / "once more"
    moved.rename(again)
    with fault():
        assert main(["report", str(again)]) == 0
        assert modality == "vision" or main(["gate", str(again)]) == 0
        assert main(["export", str(again), str(tmp_path / "exported")]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"once more", "exported"}
    assert not moved.exists()
    assert not recipe.directory.exists()


@pytest.mark.promise("7 a directory is one process's: a second run there is refused")
def test_two_comparisons_in_one_place(tmp_path, tokenizer, fault):
    recipe = small_recipe("language", tmp_path, tokenizer)
    script = "import sys; from pathlib import Path; from vpretrain.run.lock import locked; place = Path(sys.argv[1])\n"
    script += "with locked(place): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(recipe.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with fault():
            with pytest.raises(UserError, match=r"another process uses .*/tiny: wait for its end, or use name=\.\.\."):
                compare(recipe, ["one-hot"], seeds=[0], overwrite=True)
            assert [path.name for path in recipe.directory.iterdir()] == [LOCK]
        other.communicate()


@pytest.mark.promise(
    "26 a budget in minutes holds though the clock is set back, or the process is stopped and continued"
)
def test_a_clock_that_is_set_back(monkeypatch, fault):
    today = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(today))
    budget = Budget(BudgetConfig(minutes=0.3 / 60))
    with fault():
        for _ in budget:
            assert time.time() > time.time()
            time.sleep(0.1)
        assert 2 <= budget.step <= 3
        assert budget.seconds >= 0.2
    uses = re.compile(r"time\.time\(|datetime\.now|\btoday\(")
    found = {file.name for file in (ROOT / "src").rglob("*.py") if uses.search(file.read_text(encoding="utf-8"))}
    assert found == {"circumstances.py", "page.py"}  # the dates of a run and of a report: no time is measured by them


@pytest.mark.promise(
    "26 a budget in minutes holds though the clock is set back, or the process is stopped and continued"
)
def test_a_process_that_is_stopped_and_continued(tmp_path, tokenizer, fault):
    """The time for which it stands still counts, as that of a slow step does: the run ends with the step that it is in."""
    recipe = small_recipe("language", tmp_path, tokenizer, budget={"steps": None, "minutes": 2 / 60})
    log = recipe.directory / "metrics.jsonl"
    child = os.fork()
    if not child:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                run_recipe(recipe)
            finally:
                os._exit(0)
    with fault():
        while not (log.exists() and log.read_text(encoding="utf-8").count("\n") >= 2):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run has ended too early"
            time.sleep(0.01)
        os.kill(child, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(child, signal.SIGCONT)
        assert os.waitpid(child, 0) == (child, 0)
        result = json.loads((recipe.directory / "result.json").read_text(encoding="utf-8"))
        lines = read_lines(log)
        assert result["steps"] == len(lines)
        assert sum(line["seconds"] > 2 for line in lines) <= 1  # the step that it was in
        assert 1.5 <= result["seconds"] < 10  # the last step is the one that ends nearest to the limit


@pytest.mark.promise("27 a process that reads ahead and is killed: told in one line, and resumed bit-equal")
def test_a_killed_worker(tmp_path, tokenizer, fault):
    def recipe(name, prefetch):
        stream = {"prefetch": prefetch}
        return small_recipe("language", tmp_path, tokenizer, name=name, stream=stream, checkpoint={"every_steps": 1})

    run_recipe(recipe("whole", 0))

    class Killing(Hook):
        def after_step(self, session, record):
            if record.step == 1:
                for process in list(session.parts.stream._worker._processes):
                    os.kill(process, signal.SIGKILL)

    ahead = recipe("ahead", 1)
    with fault():
        with pytest.raises(
            UserError, match=r"reads the stream ahead was killed.*--resume.*stream\.prefetch=0"
        ) as caught:
            run_recipe(ahead, hooks=[Killing()])
        assert "\n" not in str(caught.value)
        run_recipe(ahead, resume=True)
        assert_same_end(end_of(ahead), end_of(recipe("whole", 0)))


@pytest.mark.promise(
    "28 a disk that fills up under a report, an export or results: one line, and the file before stays"
)
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_after_the_run(tmp_path, tokenizer, monkeypatch, capsys, fault, kind):
    recipe = small_recipe("language", tmp_path, tokenizer, arm="v", budget={"steps": 4})
    run_recipe(recipe)
    run, settings = str(recipe.directory), str(recipe.directory / "recipe.yaml")
    for file, command in (
        ("report.html", ["report", run]),
        ("gate.json", ["gate", run]),
        ("scores.json", ["evaluate", run, settings, "--output", str(recipe.directory / "scores.json")]),
    ):
        place = recipe.directory / file
        place.write_text("as it was")
        for act in ("write_text", "replace"):
            with monkeypatch.context() as patch, fault():
                whole = getattr(Path, act)

                def refused(path, *rest, file=file, whole=whole, **options):
                    if file in path.name:
                        raise OSError(kind, os.strerror(kind), str(path))
                    return whole(path, *rest, **options)

                patch.setattr(Path, act, refused)
                capsys.readouterr()
                assert main(command) == 2
                told = capsys.readouterr().err.strip().splitlines()[-1]
                assert told.startswith("vpretrain: ")
                assert f"{os.strerror(kind)}: '{place}'; mend that" in told
            assert place.read_text() == "as it was"
            assert not list(recipe.directory.glob(".*.writing"))


@pytest.mark.promise(
    "28 a disk that fills up under a report, an export or results: one line, and the file before stays"
)
def test_a_disk_that_fills_up_under_an_export(tmp_path, tokenizer, monkeypatch, fault):
    recipe = small_recipe("language", tmp_path, tokenizer, budget={"steps": 2})
    run_recipe(recipe)
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device"),
    ):

        def full(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("vpretrain.run.export.write_card", full)
        with fault(), pytest.raises(UserError, match=r"cannot write .*: .*No space left on device; make room"):
            export(str(recipe.directory), str(tmp_path / "exported"))
        assert not (tmp_path / "exported").exists()
    monkeypatch.undo()
    export(str(recipe.directory), str(tmp_path / "exported"))


def test_a_file_whose_writing_fails_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "results.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path}/results.json'")):
        write_whole(tmp_path / "results.json", "[]")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "{}")]
    with contextlib.suppress(OSError), whole_directory(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "part").write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_pipe_in_the_place_of_a_file_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(pipe := tmp_path / "results.json")
    reader = os.open(pipe, os.O_RDWR)
    try:
        write_whole(pipe, "[]")
        assert os.read(reader, 9) == b"[]"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
