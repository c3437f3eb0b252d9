"""`export --push-to-hub`: nothing is uploaded unless asked, and nothing written is lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import refusal, write_recipe

from vpretrain.cli.parser import main


class Hub:
    """In the place of huggingface_hub.HfApi."""

    public, fails, last = False, None, None

    def __init__(self):
        self.asked = []
        Hub.last = self

    def create_repo(self, name, **options):
        self.asked.append(("create", name, options))
        if self.fails:
            raise self.fails
        return f"https://hub/{name}"

    def repo_info(self, name):
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run, which exports only read."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["run", write_recipe(root, arm="one-hot", budget={"steps": 1})]) == 0
    return str(root / "runs/tiny")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "last", None)
    return Hub


def test_export_refuses_wrong_options_of_the_hub_before_it_writes(trained, hub, capsys, tmp_path):
    target = tmp_path / "exported"
    assert "--private is about --push-to-hub" in refusal(capsys, "export", trained, str(target), "--private")
    assert "give USER/NAME" in refusal(capsys, "export", trained, str(target), "--push-to-hub", "../name")
    assert not target.exists()
    assert hub.last is None


def test_export_uploads_nothing_unless_asked(trained, hub, tmp_path):
    assert main(["export", trained, str(tmp_path / "exported")]) == 0
    assert hub.last is None


def test_export_uploads_what_it_wrote_if_asked(trained, hub, capsys, tmp_path):
    target = str(tmp_path / "exported")
    assert main(["export", trained, target, "--push-to-hub", "me/mine", "--private"]) == 0
    assert "uploaded: https://hub/me/mine" in capsys.readouterr().out
    created, (_, name, files) = hub.last.asked
    assert created == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert name == "me/mine"
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "fails",
            ConnectionError("offline mode is enabled\nand more"),
            "not uploaded to me/mine: offline mode is enabled; ",
        ),
        ("public", True, "it is there already, and public"),
    ],
    ids=["offline", "public"],
)
def test_export_keeps_what_it_wrote_if_the_upload_fails(
    trained, hub, capsys, tmp_path, monkeypatch, field, value, message
):
    target = tmp_path / "exported"
    monkeypatch.setattr(hub, field, value)
    assert main(["export", trained, str(target), "--push-to-hub", "me/mine", "--private"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert f"hf upload me/mine {target}" in told
    assert [what for what, *_ in hub.last.asked] == ["create"]
    assert (target / "model.safetensors").exists()
