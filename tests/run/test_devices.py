"""Devices that this machine lacks, by name; and a Mac's GPU, emulated."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from vpretrain import UserError, devices, metal

SETTING = "PYTORCH_ENABLE_MPS_FALLBACK"


@pytest.mark.parametrize(
    ("setting", "words"),
    [("1", "run on the CPU, which takes time"), ("0", f"set {SETTING}=1"), (None, f"set {SETTING}=1")],
)
def test_one_line_says_where_operators_run_that_metal_lacks(monkeypatch, setting, words):
    said = []
    monkeypatch.setattr(devices, "_has", lambda name: True)
    monkeypatch.setattr(devices, "note", said.append)
    monkeypatch.delenv(SETTING, raising=False)
    if setting is not None:
        monkeypatch.setenv(SETTING, setting)
    devices._note_once.cache_clear()
    for _ in range(2):  # a run asks more than once
        assert devices.available("mps") == torch.device("mps")
    assert len(said) == 1
    assert words in said[0]
    assert devices.available("cpu") == torch.device("cpu")
    assert len(said) == 1


def test_a_machine_without_metal_refuses_it():
    if torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(UserError, match="mps: this machine"):
        devices.available("mps")


@pytest.mark.parametrize(
    ("platform", "imported", "given", "wanted"),
    [
        ("darwin", [], None, "1"),
        ("darwin", [], "0", "0"),  # the user's own choice
        ("darwin", ["torch"], None, None),  # it would not be read
        ("linux", [], None, None),
    ],
)
def test_on_a_mac_torch_is_asked_to_fall_back_before_its_import(monkeypatch, platform, imported, given, wanted):
    monkeypatch.setattr(metal, "sys", SimpleNamespace(platform=platform, modules=dict.fromkeys(imported)))
    monkeypatch.setenv(SETTING, "to be restored")
    monkeypatch.delenv(SETTING)
    if given is not None:
        monkeypatch.setenv(SETTING, given)
    metal.let_fall_back()
    assert os.environ.get(SETTING) == wanted
