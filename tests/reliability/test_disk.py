"""Disks that are full or broken, and files that have changed."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from sessions import assert_same_end, end_of, session_of
from transformers import modeling_utils
from worlds import small_recipe

from vpretrain import UserError, run_recipe
from vpretrain.modality import MODALITIES
from vpretrain.run import checkpoint
from vpretrain.run.checkpoint import checkpoints, damage, load_newest, save_checkpoint

pytestmark = pytest.mark.reliability


class Disk:
    """Counts what is asked of the disk below a directory, and refuses one of it."""

    def __init__(self, monkeypatch, root):
        self.root, self.asked, self.refused, self.error = Path(root), 0, None, None
        self._wrap(monkeypatch, Path, "mkdir", lambda path, *rest, **options: path)
        self._wrap(monkeypatch, Path, "rename", lambda path, target: target)
        self._wrap(monkeypatch, Path, "replace", lambda path, target: target)
        self._wrap(monkeypatch, Path, "write_text", lambda path, *rest, **options: path)
        self._wrap(monkeypatch, checkpoint, "save_file", lambda tensors, path: path)
        self._wrap(monkeypatch, modeling_utils, "safe_save_file", lambda tensors, path, *rest, **options: path)
        whole_open = Path.open

        def opened(path, mode="r", *rest, **options):
            if self._mine(path) and "a" in mode:
                self._ask(path)
                return Log(self, path, whole_open(path, mode, *rest, **options))
            return whole_open(path, mode, *rest, **options)

        monkeypatch.setattr(Path, "open", opened)

    def _wrap(self, monkeypatch, owner, name, target):
        whole = getattr(owner, name)

        def wrapped(*arguments, **options):
            path = target(*arguments, **options)
            if self._mine(path):
                self._ask(path)
            return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    def _mine(self, path):
        return Path(path).is_relative_to(self.root)

    def _ask(self, path):
        self.asked += 1
        if self.asked == self.refused:
            raise OSError(self.error, os.strerror(self.error), str(path))


class Log(io.TextIOBase):
    """A log whose lines may be refused half-way."""

    def __init__(self, disk, path, file):
        self.disk, self.path, self.file = disk, path, file

    def write(self, text):
        try:
            self.disk._ask(self.path)
        except OSError:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise
        return self.file.write(text)

    def flush(self):
        if not self.file.closed:
            self.file.flush()

    def close(self):
        self.file.close()
        super().close()


@pytest.mark.timeout(1200)
@pytest.mark.promise("3 a full, broken or read-only disk at any write: told in one line, checkpoints intact, resumable")
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_disk_that_refuses_a_write(tmp_path, tokenizer, monkeypatch, fault, many, modality):
    if modality == "vision" and many(True, False):
        pytest.skip("in the long form")
    recipe = small_recipe(modality, tmp_path, tokenizer, checkpoint={"every_steps": 2, "keep": 2})
    disk = Disk(monkeypatch, recipe.directory)
    run_recipe(recipe)
    disk.asked = 0
    run_recipe(recipe, overwrite=True)  # as all that follow: in a directory that is there
    whole, writes = end_of(recipe), disk.asked
    assert writes > 40
    kinds = (errno.ENOSPC, errno.EIO, errno.EROFS)
    draw = random.Random(modality)
    tries = [(number, kind) for number in range(1, writes + 1) for kind in kinds]
    for number, kind in draw.sample(tries, many(8, 60 if modality == "language" else 25)):
        with fault():
            disk.asked, disk.refused, disk.error = 0, number, kind
            with pytest.raises(UserError) as caught:
                run_recipe(recipe, overwrite=True)
            assert "\n" not in str(caught.value)
            assert os.strerror(kind) in str(caught.value)
            disk.refused = None
            root = recipe.directory / "checkpoints"
            assert not any(map(damage, checkpoints(root)))
            resumable = bool(checkpoints(root))
            if resumable:  # nor may the disk refuse what is written when a run goes on
                disk.asked, disk.refused = 0, 1 + number % 3
                with pytest.raises(UserError, match=re.escape(os.strerror(kind))):
                    run_recipe(recipe, resume=True)
                disk.refused = None
            run_recipe(recipe, resume=resumable, overwrite=not resumable)
            assert_same_end(end_of(recipe), whole)


@pytest.mark.promise(
    "4 a checkpoint with a file cut short, changed in a bit, or gone: the one before is used, and said so"
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, tokenizer, capsys, fault, many, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer, checkpoint={"every_steps": 5, "keep": 2})
    run_recipe(recipe)
    root = recipe.directory / "checkpoints"
    before, newest = checkpoints(root)
    expected = load_newest_of(before, tmp_path)
    draw = random.Random(modality)
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for how in ("cut", "bit", "gone", "more")[: many(2, None)] * many(1, 8):
            with fault():
                if how == "gone":
                    path.unlink()
                elif how == "cut":
                    path.write_bytes(content[: draw.randrange(len(content))])
                elif how == "more":
                    path.write_bytes(content + b"\0")
                else:
                    place = draw.randrange(len(content))
                    changed = bytes([content[place] ^ (1 << draw.randrange(8))])
                    path.write_bytes(content[:place] + changed + content[place + 1 :])
                found = load_newest(root)
                path.write_bytes(content)
                assert_same_end(expected, found)
                told = capsys.readouterr().err
                assert f"warning: the checkpoint {newest} is damaged: " in told
                assert "; going back to the one before" in told
    assert damage(newest) is None


def load_newest_of(path, tmp_path):
    """That checkpoint alone."""
    shutil.copytree(path, tmp_path / "alone" / path.name)
    return load_newest(tmp_path / "alone")


@pytest.mark.promise(
    "4 a checkpoint with a file cut short, changed in a bit, or gone: the one before is used, and said so"
)
def test_a_run_goes_on_behind_a_damaged_checkpoint(tmp_path, tokenizer, fault):
    recipe = small_recipe("language", tmp_path, tokenizer, checkpoint={"every_steps": 2, "keep": 3})
    run_recipe(recipe)
    whole, root = end_of(recipe), recipe.directory / "checkpoints"
    with fault():
        (checkpoints(root)[-1] / "learner.safetensors").write_bytes(b"")
        run_recipe(recipe, resume=True)
        assert_same_end(end_of(recipe), whole)


def test_all_processes_go_on_from_the_same_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"a": {"x": torch.ones(2)}}, {"n": step}, keep=3)
    with monkeypatch.context() as patch:  # the first process does not see the newest yet
        patch.setattr(checkpoint.distributed, "broadcast", lambda item: item[:2] if isinstance(item, list) else item)
        assert load_newest(tmp_path)[1] == {"n": 2}
    reasons = ["no such file", None]
    with monkeypatch.context() as patch:  # another process cannot read the newest
        patch.setattr(checkpoint.distributed, "all_gather", lambda item: [item, reasons.pop(0)])
        assert load_newest(tmp_path)[1] == {"n": 2}
    assert load_newest(tmp_path)[1] == {"n": 3}


def test_with_no_whole_checkpoint_one_line_says_so(tmp_path, tokenizer):
    recipe = small_recipe("language", tmp_path, tokenizer)
    run_recipe(recipe)
    (checkpoints(recipe.directory / "checkpoints")[-1] / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read: start the run anew with --overwrite"):
        session_of(recipe, resume=True)


@pytest.mark.promise("9 older checkpoints go only when the new one reads back whole")
def test_the_old_checkpoint_goes_only_after_the_new_one_has_been_read_back(tmp_path, monkeypatch, fault):
    def save(step):
        return save_checkpoint(tmp_path, step, {"a": {"x": torch.full((3,), float(step))}}, {"n": step}, keep=2)

    for step in range(4):
        save(step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    whole = checkpoint.damage
    with fault():
        monkeypatch.setattr(checkpoint, "damage", lambda path: "a.safetensors has changed")
        with pytest.raises(UserError, match=r"it reads back as something else: a\.safetensors has changed"):
            save(4)
        monkeypatch.setattr(checkpoint, "damage", whole)
        assert {"step-00000002", "step-00000003"} < {path.name for path in checkpoints(tmp_path)}
        assert load_newest(tmp_path)[1] == {"n": 4}
    (tmp_path / ".writing-00000009").mkdir()  # by a process that was killed
    save(5)
    assert not list(tmp_path.glob(".writing-*"))
