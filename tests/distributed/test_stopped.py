"""Runs of several processes that are stopped, killed or hindered, and gone on with by as many processes or others."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed.processes import free_port, run, session_of, together, torchrun
from distributed.test_equal import OF_PHI, TOLERANCE, ends_apart, recipe_of
from safetensors.torch import load_file
from security.test_hostile_files import LIES, forge, hostile_tensors
from sessions import assert_same_end, end_of, stop

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.recipe import save_recipe
from vpretrain.run import checkpoint, run_recipe

pytestmark = pytest.mark.distributed

PARALLEL = ("ddp", "fsdp")
LAUNCH = Path(__file__).parents[2] / "examples" / "launch.sh"


def stopped(recipe, step, resume=False):
    """Leaves off after a step, as at a signal that one process alone was sent."""
    session = session_of(recipe, resume=resume)
    return stop(session, step if distributed.rank() == distributed.size() - 1 else None).exit_code


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("case", ["language-accumulation", "language-lora", "vision-dino"])
def test_as_many_processes_go_on_bit_equal(tmp_path, tokenizer, many, case, parallel):
    if many(case != "language-lora", False):
        pytest.skip("in the long form")
    recipe = recipe_of(case, parallel, tmp_path, tokenizer, "two")
    if case == "language-lora":  # dropout, of which every process has its own
        recipe = recipe.model_copy(update={"learner": recipe.learner.model_copy(
            update={"lora": recipe.learner.lora.model_copy(update={"dropout": 0.2})})})  # fmt: skip
    together(2, run, recipe)
    whole = end_of(recipe)
    for step in many((2,), range(5)):
        assert together(2, stopped, recipe, step)[0] in (128 + signal.SIGTERM, 128 + signal.SIGTERM)
        together(2, run, recipe, True)
        assert_same_end(end_of(recipe), whole)


@pytest.mark.usefixtures("both_questions")
def test_two_processes_stopped_around_a_judgement_go_on_bit_equal(tmp_path, tokenizer):
    """Step 2 judges whether there is a direction, step 4 also how far it helps."""
    recipe = recipe_of("language-exact-auto", "ddp", tmp_path, tokenizer, "two")
    together(2, run, recipe)
    lines = read_lines(recipe.directory / "metrics.jsonl")
    assert [line["step"] for line in lines if "strength" in line] == [2, 4]
    assert sum("g_down_norm" in line for line in lines) >= 3
    whole = end_of(recipe)
    assert [bool(judgement[1]) for judgement in whole[1]["strength"]["judgements"]] == [True, False]
    for step in (1, 2, 3, 4):
        together(2, stopped, recipe, step, step > 1)
    together(2, run, recipe, True)
    assert_same_end(end_of(recipe), whole)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("case", ["language", "language-shards", "vision-dino"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_processes_go_on(tmp_path, tokenizer, many, case, parallel, before, after):
    if many((case, parallel) == ("vision-dino", "ddp") or case == "language-shards", False):
        pytest.skip("in the long form")
    whole, changed = (recipe_of(case, parallel, tmp_path, tokenizer, name) for name in ("whole", "changed"))
    together(1, run, whole)
    together(before, stopped, changed, 2)
    together(after, run, changed, True)
    ends = end_of(whole), end_of(changed)
    assert ends[0][1]["totals"] == pytest.approx(ends[1][1]["totals"])
    found = ends_apart(*ends)
    assert found.pop("designer", 0.0) < OF_PHI[parallel]
    assert max(found.values()) < TOLERANCE[parallel], found


@pytest.mark.parametrize("parallel", PARALLEL)
def test_the_exported_model_is_the_checkpoints_learner(tmp_path, tokenizer, parallel):
    from transformers import AutoModelForCausalLM

    recipe = recipe_of("language", parallel, tmp_path, tokenizer, "two")
    together(2, run, recipe)
    model = AutoModelForCausalLM.from_pretrained(recipe.directory / "model", use_safetensors=True)
    learner = end_of(recipe)[0]["learner"]
    exported = {f"model.{name}": p for name, p in model.named_parameters()}
    assert exported.keys() == learner.keys()
    assert all(torch.equal(p, learner[name]) for name, p in exported.items())


def refused_on_one_disk(recipe):
    """A checkpoint whose second process cannot write its file."""
    session = session_of(recipe)
    real = checkpoint.save_file

    def full(tensors, path):
        if distributed.rank() == 1 and session.budget.step >= 3:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    checkpoint.save_file = full
    try:
        session.run()
    except UserError as error:
        return str(error)
    return None


def test_a_disk_that_refuses_one_process_ends_all_with_the_cause(tmp_path, tokenizer):
    recipe = recipe_of("language", "fsdp", tmp_path, tokenizer, "two")
    recipe = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"every_steps": 2})})
    told = together(2, refused_on_one_disk, recipe)
    assert all(text is not None and "No space left on device" in text for text in told), told
    left = recipe.directory / "checkpoints"
    assert [path.name for path in left.iterdir()] == ["step-00000002"]
    assert checkpoint.damage(left / "step-00000002") is None
    together(2, run, recipe, True)


@pytest.mark.parametrize("damaged", ["learner.1-of-2.safetensors", "designer.safetensors"])
def test_a_damaged_shard_sends_all_to_the_checkpoint_before(tmp_path, tokenizer, damaged):
    recipe = recipe_of("language", "fsdp", tmp_path, tokenizer, "two")
    every = recipe.checkpoint.model_copy(update={"every_steps": 2})
    recipe = recipe.model_copy(update={"arm": "v-learned", "checkpoint": every})
    together(2, run, recipe)
    whole = end_of(recipe)
    file = checkpoint.checkpoints(recipe.directory / "checkpoints")[-1] / damaged
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    together(2, run, recipe, True)
    assert_same_end(end_of(recipe), whole)


@pytest.mark.promise(
    "4 a checkpoint with a file cut short, changed in a bit, or gone: the one before is used, and said so"
)
def test_shards_that_are_cut_or_gone_or_too_long_are_passed_over(tmp_path, tokenizer, capsys, fault, many):
    recipe = recipe_of("language", "fsdp", tmp_path, tokenizer, "two")
    every = recipe.checkpoint.model_copy(update={"every_steps": 5, "keep": 2})
    recipe = recipe.model_copy(update={"checkpoint": every})
    together(2, run, recipe)
    root = recipe.directory / "checkpoints"
    before, newest = checkpoint.checkpoints(root)
    shutil.copytree(before, tmp_path / "alone" / before.name)
    expected = checkpoint.load_newest(tmp_path / "alone")
    shards = sorted(newest.glob("*-of-2.safetensors"))
    assert {"learner.0-of-2.safetensors", "learner.1-of-2.safetensors"} <= {path.name for path in shards}
    draw = random.Random("shards")
    for path in shards:
        content = path.read_bytes()
        for how in ("cut", "gone", "more") * many(1, 8):
            with fault():
                if how == "gone":
                    path.unlink()
                else:
                    path.write_bytes(content + b"\0" if how == "more" else content[: draw.randrange(len(content))])
                found = checkpoint.load_newest(root)
                path.write_bytes(content)
                assert_same_end(expected, found)
                told = capsys.readouterr().err
                assert f"warning: the checkpoint {newest} is damaged: {path.name}" in told
    assert checkpoint.damage(newest) is None


@pytest.mark.promise("15 safetensors that lie about sizes, offsets, shapes or names: one line, and nothing else")
def test_shards_that_lie(tmp_path, tokenizer, fault, many):
    recipe = recipe_of("language", "fsdp", tmp_path, tokenizer, "two")
    together(2, run, recipe)
    (newest,) = checkpoint.checkpoints(recipe.directory / "checkpoints")
    shard, manifest = newest / "learner.1-of-2.safetensors", newest / checkpoint.MANIFEST
    content, described = shard.read_bytes(), manifest.read_text()
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}  # not views of the file that changes
    for how in many(("a header longer than the file", "a shape that is too small"), LIES):
        with fault():
            forge(newest, shard.name, hostile_tensors(tensors, how))
            with pytest.raises(UserError) as caught:
                session_of(recipe, resume=True)
            assert "\n" not in str(caught.value)
    with fault():  # that is gone, of which the manifest says nothing
        shard.unlink()
        manifest.write_text(json.dumps({name: of for name, of in json.loads(described).items() if name != shard.name}))
        with pytest.raises(UserError) as caught:
            session_of(recipe, resume=True)
        assert "\n" not in str(caught.value)
    shard.write_bytes(content)
    manifest.write_text(described)
    session_of(recipe, resume=True)


def result_of(recipe, **kwargs):
    result = run_recipe(recipe, **kwargs)
    return {name: result.figures[name] for name in ("steps", "processes", "tokens", "seconds")}


def test_minutes_are_those_of_the_process_that_leads(tmp_path, tokenizer):
    recipe = recipe_of("language", "ddp", tmp_path, tokenizer, "two")
    recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"steps": None, "minutes": 1 / 60})})
    first, second = together(2, result_of, recipe)
    assert first == second
    assert first["processes"] == 2
    assert first["seconds"] == pytest.approx(1, abs=max(0.3, 2 / first["steps"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stream": {"batch_size": 3}}, "stream.batch_size=3 is no multiple of the 2 processes"),
        ({"feedback": {"batch_size": 1}}, "feedback.batch_size=1 is below the 2 processes"),
        ({"value": {"batch_size": 1}}, "value.batch_size=1 is below the 2 processes"),
        ({"arm": "sft"}, "arm=sft trains in one process"),
    ],
)
def test_what_processes_cannot_share_is_refused(tmp_path, tokenizer, changes, words):
    from worlds import tiny_recipe

    def refused(recipe):
        with pytest.raises(UserError) as caught:
            run_recipe(recipe)
        return str(caught.value)

    changes = {section: values if isinstance(values, str) else {"batch_size": 4} | values for section, values in
               ({"stream": {}, "feedback": {}, "value": {}} | changes).items()}  # fmt: skip
    told = together(2, refused, tiny_recipe(tmp_path, tokenizer, **changes))
    assert all(words in text for text in told)


def saved_recipe(tmp_path, tokenizer, parallel, **changes):
    recipe = recipe_of("language", parallel, tmp_path, tokenizer, "two").model_copy(update=changes)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    return recipe, str(tmp_path / "recipe.yaml")


def children_of(pid):
    parents = {
        int(stat.parent.name): stat.read_text().rpartition(")")[2].split() for stat in Path("/proc").glob("[0-9]*/stat")
    }
    return [child for child, (_, parent, *_) in parents.items() if int(parent) == pid]


def ended(process):
    """Well."""
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told


@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_one_process_is_killed_and_all_go_on(tmp_path, tokenizer, many, parallel):
    """SIGKILL of one of torchrun's processes at seeded instants: the others end too, and the run goes on to the same end."""
    if many(True, False):
        pytest.skip("in the long form")
    recipe, path = saved_recipe(tmp_path, tokenizer, parallel)
    settings = ("budget.steps=40", "checkpoint.every_steps=2")
    ended(torchrun("run", path, *settings))
    whole = end_of(recipe)
    draw = random.Random(parallel)
    for _ in range(5):
        (recipe.directory / "metrics.jsonl").unlink()
        start = torchrun("run", path, *settings, "--overwrite", start_new_session=True)
        log, at = recipe.directory / "metrics.jsonl", draw.randint(3, 30)
        while not (log.exists() and log.read_text().count("\n") >= at):
            assert start.poll() is None, start.communicate()[1]
            time.sleep(0.02)
        os.kill(draw.choice(children_of(start.pid)), signal.SIGKILL)
        start.communicate(timeout=60)
        assert start.returncode != 0
        ended(torchrun("run", path, *settings, "--resume"))
        assert_same_end(end_of(recipe), whole)


def test_one_process_fails_and_all_end_with_the_cause(tmp_path, tokenizer):
    """Files that one machine lacks."""
    _, path = saved_recipe(tmp_path, tokenizer, "ddp")
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    missing = f"stream.sources.0.path={tmp_path / 'not-there.jsonl'}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "vpretrain", "run", path, *((missing,) if rank else ())],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=90)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert "no data at" in told[1]
    others = [line for line in told[0].splitlines() if not line.endswith("so far")]  # on a busy machine
    assert not others or "another process has ended" in told[0]
    assert "Traceback" not in "".join(told)


def test_other_commands_are_refused_under_torchrun(tmp_path, monkeypatch, capsys):
    from vpretrain.cli.parser import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main(["compare", "recipe.yaml"])
    assert stop.value.code == 2
    assert "only `vpretrain run`" in capsys.readouterr().err


def test_a_log_has_each_step_once(tmp_path, tokenizer):
    recipe = recipe_of("language", "ddp", tmp_path, tokenizer, "two")
    together(2, stopped, recipe, 3)
    together(2, run, recipe, True)
    lines = read_lines(recipe.directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(6))


def test_the_launch_script_says_in_one_line_what_is_wrong_with_a_recipe(tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [LAUNCH, str(tmp_path / "none.yaml"), "--until", "0.5"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("vpretrain: ")


@pytest.mark.timeout(600)
def test_two_machines_and_once_more(tmp_path, tokenizer):
    """The launch script on two "machines" of this one, with a process each; and again, to go on with what it left."""
    recipe, path = saved_recipe(tmp_path, tokenizer, "ddp")
    for until in ("0.5", "1"):
        environment = os.environ | {
            "NODES": "2", "PROCESSES": "1", "PORT": str(free_port()), "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        machines = [
            subprocess.Popen(
                [LAUNCH, path, "--until", until, "budget.steps=6"],
                env=environment | {"NODE": str(node)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in range(2)
        ]
        told = [machine.communicate(timeout=200)[1] for machine in machines]
        assert all((machine.returncode == 0) is (until == "1") for machine in machines), told
    result = json.loads((recipe.directory / "result.json").read_text())
    assert (result["steps"], result["processes"]) == (6, 2)
