"""Files that somebody has made to do harm: refused in one line, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import socket
import struct
import tarfile
import time
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sessions import end_of
from worlds import recipe_data, save_learner, small_recipe

from vpretrain import UserError, load_recipe, pretrained, run_recipe
from vpretrain.cli.parser import main
from vpretrain.compare.sweep import load_space
from vpretrain.language.config import LearnerConfig
from vpretrain.language.model.load import load_model
from vpretrain.recipe import parse_recipe, save_recipe, with_overrides
from vpretrain.run.checkpoint import MANIFEST, _described, checkpoints, damage, load_checkpoint
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.source import open_images
from vpretrain.vision.model.load import load_backbone

pytestmark = pytest.mark.security


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.write_text, (self.file, "run"))


@pytest.fixture
def finished(tmp_path, tokenizer):
    recipe = small_recipe("language", tmp_path, tokenizer)
    run_recipe(recipe)
    return recipe


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Puts a file into a checkpoint, and makes its manifest agree."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest[name] = _described(checkpoint / name)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.promise("14 no pickle, eval, unsafe load or shell in the source")
def test_a_pickle_is_not_run(tmp_path, tokenizer, finished, fault):
    mark = tmp_path / "mark"
    harm = pickle.dumps(Payload(mark))
    (newest,) = checkpoints(finished.directory / "checkpoints")
    for name, message in (
        ("learner.safetensors", "cannot be read"),
        ("learner.pt", "names 'learner.pt', which is no file"),
    ):
        forge(newest, name, harm)
        with fault(), pytest.raises(UserError, match=message):
            load_checkpoint(newest)
    learner = Path(save_learner(tmp_path / "hostile", tokenizer))
    (learner / "model.safetensors").unlink()
    torch.save(Payload(mark), learner / "pytorch_model.bin")
    for load in (lambda: load_model(LearnerConfig(name=str(learner))), lambda: load_backbone(str(learner))):
        with fault(), pytest.raises(UserError, match="cannot load the learner") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    pickle.loads(harm)  # it would have
    assert mark.exists()


LIES = (
    "a header of 2^60 bytes", "a header longer than the file", "a header that is no JSON", "offsets beyond the file",
    "offsets that go backwards", "tensors that overlap", "a shape whose size overflows", "a shape that is too small",
    "an unknown type", "other names", "nothing",
)  # fmt: skip


def hostile_tensors(tensors: dict[str, torch.Tensor], how: str) -> bytes:
    """A safetensors file that lies."""
    name, tensor = next((n, t) for n, t in tensors.items() if t.numel() > 8)
    header = {name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, 4 * tensor.numel()]}}
    data, size = tensor.float().numpy().tobytes(), None
    match how:
        case "a header of 2^60 bytes":
            size = 1 << 60
        case "a header longer than the file":
            size = 10_000_000
        case "a header that is no JSON":
            return struct.pack("<Q", 16) + b"\xff" * 16 + data
        case "offsets beyond the file":
            header[name]["data_offsets"] = [0, 1 << 40]
        case "offsets that go backwards":
            header[name]["data_offsets"] = [4 * tensor.numel(), 0]
        case "tensors that overlap":
            header["other"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        case "a shape whose size overflows":
            header[name]["shape"] = [1 << 40, 1 << 40]
        case "a shape that is too small":
            header[name] |= {"shape": [1], "data_offsets": [0, 4]}
            data = data[:4]
        case "an unknown type":
            header[name]["dtype"] = "PY"
        case "other names":
            header = {"../../" + name: header[name]}
        case "nothing":
            return b""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if size is None else size) + encoded + data


@pytest.mark.promise("15 safetensors that lie about sizes, offsets, shapes or names: one line, and nothing else")
@pytest.mark.parametrize("how", LIES)
def test_tensors_that_lie(tmp_path, tokenizer, finished, capsys, fault, how):
    (newest,) = checkpoints(finished.directory / "checkpoints")
    tensors = load_file(newest / "learner.safetensors")
    with fault():
        forge(newest, "learner.safetensors", hostile_tensors(tensors, how))
        save_recipe(finished, tmp_path / "recipe.yaml")
        assert main(["run", str(tmp_path / "recipe.yaml"), "--resume"]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("vpretrain: ")
    learner = Path(save_learner(tmp_path / "hostile", tokenizer))
    weights = load_file(learner / "model.safetensors")
    (learner / "model.safetensors").write_bytes(hostile_tensors(weights, how))
    if how in ("a shape that is too small", "other names"):
        return  # what is missing transformers makes anew, with a warning
    with fault(), pytest.raises(UserError, match="cannot load the learner") as caught:
        load_model(LearnerConfig(name=str(learner)))
    assert "\n" not in str(caught.value)


@pytest.mark.promise("16 code that comes with a learner runs only under --trust-remote-code")
def test_code_of_a_learner_is_not_run(tmp_path, tokenizer, capsys, monkeypatch, fault):
    monkeypatch.setattr(pretrained, "trusted", False)  # and at the end so again
    mark = tmp_path / "mark"
    learner = Path(save_learner(tmp_path / "hostile", tokenizer))
    config = json.loads((learner / "config.json").read_text())
    config |= {"model_type": "hostile", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (learner / "config.json").write_text(json.dumps(config))
    (learner / "code.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\n")
    data = recipe_data(tmp_path, tokenizer)
    for change in ({}, {"trust_remote_code": True}):
        data["learner"] = {"name": str(learner), **change}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
        with fault():
            assert main(["run", str(tmp_path / "recipe.yaml"), "--overwrite"]) == 2
            told = capsys.readouterr().err
            assert ("unknown key 'learner.trust_remote_code'" if change else "vpretrain --trust-remote-code") in told
    assert not mark.exists()
    assert main(["--trust-remote-code", "run", str(tmp_path / "recipe.yaml"), "--overwrite", "learner={}"]) == 2
    assert pretrained.trusted


@pytest.mark.promise("17 names with paths in recipes, manifests and archives are refused")
@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", ".hidden", "", "a\0b", "a\n", "a b", "~root"])
def test_paths_in_names_of_runs(tmp_path, tokenizer, fault, name):
    with fault(), pytest.raises(UserError, match="'name'"):
        parse_recipe(recipe_data(tmp_path, tokenizer) | {"name": name})


@pytest.mark.promise("17 names with paths in recipes, manifests and archives are refused")
@pytest.mark.parametrize(
    "name", ["../../recipe.yaml", "/etc/passwd", "a/b.json", ".hidden.json", "state.json\n", "x.pkl"]
)
def test_paths_in_manifests(finished, fault, name):
    (newest,) = checkpoints(finished.directory / "checkpoints")
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest[name] = manifest["state.json"]
    (newest / MANIFEST).write_text(json.dumps(manifest))
    with fault():
        assert "which is no file of a checkpoint" in damage(newest)


@pytest.mark.promise("17 names with paths in recipes, manifests and archives are refused")
def test_paths_in_archives_are_only_names(tmp_path, fault):
    picture = BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(picture, "png")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name in ("../evil.png", "/tmp/evil-vpretrain.png", "good.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, BytesIO(picture.getvalue()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(map(str, tmp_path.rglob("*")))
    with fault():
        pictures = open_images(SourceConfig(path=str(tmp_path / "in" / "*.tar")))
        assert len(pictures) == 3  # read in place; the link is none
        assert all(pictures[index].shape == (3, 8, 8) for index in range(3))
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert not Path("/tmp/evil-vpretrain.png").exists()


@pytest.mark.promise("18 passwords and tokens reach no saved recipe, log or message")
@pytest.mark.parametrize("where", ["learner.name", "stream.sources.0.path", "feedback.sources.0.path"])
@pytest.mark.parametrize(
    "secret",
    ["https://me:hunter2secret@host/x.jsonl", "https://hunter2secret@host/x.jsonl", "hf_hunter2secretABCDEFGHIJKLMN"],
)
def test_secrets_are_refused_and_not_repeated(tmp_path, tokenizer, capsys, fault, where, secret):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data(tmp_path, tokenizer)))
    with fault():
        assert main(["run", str(tmp_path / "recipe.yaml"), f"{where}={secret}"]) == 2
        told = capsys.readouterr()
        assert "holds a password or token" in told.err
        assert "hunter2secret" not in told.err + told.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.promise("18 passwords and tokens reach no saved recipe, log or message")
@pytest.mark.parametrize("override", ["stream.sources.9.path={}", "stream.name.x={}", "learner={}: [", "{}"])
def test_mistakes_beside_a_secret_do_not_repeat_it(tmp_path, tokenizer, capsys, fault, override):
    data = recipe_data(tmp_path, tokenizer)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "broken.yaml").write_text("name: [https://me:hunter2secret@host\n: :")
    command = ["run", str(tmp_path / "recipe.yaml"), override.format("https://me:hunter2secret@host")]
    command = ["run", str(tmp_path / "broken.yaml")] if override == "{}" else command
    with fault():
        assert main(command) == 2
        told = capsys.readouterr()
        assert "hunter2secret" not in told.err + told.out


@pytest.mark.promise("18 passwords and tokens reach no saved recipe, log or message")
def test_a_token_of_the_environment_is_in_no_file_of_a_run(tmp_path, tokenizer, monkeypatch, fault):
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2secretABCDEFGHIJKLMN")
    recipe = small_recipe("language", tmp_path, tokenizer)
    with fault():
        run_recipe(recipe)
        files = [path for path in recipe.directory.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert not any(b"hunter2secret" in path.read_bytes() for path in files)


@pytest.mark.promise("20 no telemetry: a run on local files opens no connection")
@pytest.mark.parametrize("modality", ["language", "vision"])
def test_a_run_on_local_files_opens_no_connection(tmp_path, tokenizer, monkeypatch, fault, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer)

    def refused(*arguments, **options):
        raise AssertionError(f"somebody is called: {arguments}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    with fault():
        run_recipe(recipe)
        assert end_of(recipe)
        assert list((recipe.directory / "tensorboard").glob("events*"))  # the default tracker calls nobody either


def test_a_recursive_recipe_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: a\nlearner: &l\n  name: x\n  more: *l\n")
    with pytest.raises(UserError):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000)
    with pytest.raises(UserError):
        load_recipe(tmp_path / "deep.yaml")


def tenfold(line):
    """Ten parts, each of which stands ten times in the next: some hundred characters for ten billion."""
    return "a: &a {x: y}\n" + "".join(
        line.format(name=name, parts=", ".join([f"*{before}"] * 10)) for before, name in pairwise("abcdefghijk")
    )


@pytest.mark.parametrize("line", ["{name}: &{name} [{parts}]\n", "{name}: &{name} {{<<: [{parts}]}}\n"])
def test_aliases_of_aliases_are_refused_before_they_are_written_out(tmp_path, tokenizer, line):
    file = tmp_path / "recipe.yaml"
    file.write_text(tenfold(line))
    start = time.monotonic()
    for read in (load_recipe, load_space):
        with pytest.raises(UserError, match=r"recipe.yaml: its aliases repeat more than 50,000 characters"):
            read(file)
    options = "{" + ", ".join(tenfold(line).splitlines()) + "}"
    with pytest.raises(UserError, match=r"stream.sources.0.options': what follows the = is not a valid YAML value"):
        with_overrides(recipe_data(tmp_path, tokenizer), [f"stream.sources.0.options={options}"])
    assert time.monotonic() - start < 5


def test_aliases_that_repeat_a_little_are_written_out(tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer)
    data["evaluation"]["retention"] = data["stream"]["sources"][1:]  # the same object: an alias
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert "*id" in (tmp_path / "recipe.yaml").read_text()
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.evaluation.retention == recipe.stream.sources[1:]


@pytest.mark.parametrize("tag", ["bool", "int", "float", "timestamp"])
def test_a_value_that_does_not_fit_its_tag_is_one_line_without_the_value(tmp_path, tag):
    (tmp_path / "recipe.yaml").write_text(f"name: !!{tag} hunter2secret")
    with pytest.raises(UserError, match="is not valid YAML: a number, date or tag in it is none") as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "hunter2secret" not in str(caught.value)
