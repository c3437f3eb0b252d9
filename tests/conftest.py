"""Shared fixtures. Nothing here or in any test reaches the network or the user's caches."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections import Counter
from functools import partial
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vpretrain-tests-")
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] + "/huggingface"

import pytest
import torch
from jaxtyping import install_import_hook
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

CHECKED = {
    "model": ("backbone", "batch", "heads", "learner", "loss"),
    "data": ("encode", "feedback", "stream"),
    "task": ("construction", "designer"),
    "evaluation": ("evaluate",),
}
# The shapes that these modules promise are checked, in tests only.
install_import_hook(
    [
        f"vpretrain.{modality}.{folder}.{module}"
        for modality in ("language", "vision")
        for folder, modules in CHECKED.items()
        for module in modules
    ],
    "beartype.beartype",
)

disable_progress_bar()  # commands are tested by the lines that they print
torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much beside other work

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n?:.#+=-<>|"


def character_tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """One token a character; few enough for the vocabulary of the tiny models."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<pad>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token=pad)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe for commands into the test's directory, with the changes given; returns its path."""
    from commands import write_recipe  # which takes the tokenizer from here

    return partial(write_recipe, tmp_path)


@pytest.fixture
def tokenizer():
    """A tokenizer with its own padding token."""
    return character_tokenizer()


@pytest.fixture
def pad_is_eos_tokenizer():
    """A tokenizer whose padding token is its end token, as in many released models."""
    return character_tokenizer("<eos>")


@pytest.fixture
def judged_early(monkeypatch):
    """The first judgement after two learner steps, also late in a run: most runs of the tests end before the usual one."""
    monkeypatch.setattr("vpretrain.method.strength.FIRST", 2)
    monkeypatch.setattr("vpretrain.method.strength._LATE", 1.0)


@pytest.fixture
def both_questions(judged_early, monkeypatch):
    """`judged_early`, and the direction is followed whatever the pairs say; its gain is measured after two more steps."""
    monkeypatch.setattr("vpretrain.method.strength._UNMEASURED", 2)
    monkeypatch.setattr("vpretrain.method.strength._AGREED", -math.inf)


@contextlib.contextmanager
def runs_in_this_process():
    """Runs of a group in this process (a process costs seconds); yields the commands in their order."""
    from vpretrain.cli.parser import main
    from vpretrain.compare import runs

    commands = []

    def start(command):
        commands.append(list(command))
        return SimpleNamespace(wait=lambda: main(command))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "start_process", start)
        yield commands


@pytest.fixture
def in_this_process():
    """`runs_in_this_process` for one test."""
    with runs_in_this_process() as commands:
        yield commands


def pytest_unconfigure(config):
    """Remove the caches of this process, up to half a gigabyte of scenes and weights."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Half an hour for a slow test: a real learner, on two cores that may be busy."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long forms of the tests of reliability and security")
    parser.addoption("--rehearse", action="store_true", help="tests/gpu on the CPU, where that makes sense")


@pytest.fixture
def device(request):
    """The device of tests/gpu: a GPU, or the CPU with --rehearse."""
    if request.config.getoption("rehearse"):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or --rehearse for the CPU")
    return torch.device("cuda")


@pytest.fixture
def on_device(tmp_path, tokenizer, device):
    """Makes tiny recipes whose learner is on the device."""
    from worlds import tiny_recipe

    def make(family="llama", *, learner=(), **changes):
        return tiny_recipe(tmp_path, tokenizer, family, learner={"device": device.type, **dict(learner)}, **changes)

    return make


TRIED, SURVIVED = Counter(), Counter()  # by promise, of docs/reliability.md


@pytest.fixture
def fault(request):
    """A context for each fault that a promise is tried with; `make test-reliability` prints how many it survived."""
    (promise,) = request.node.get_closest_marker("promise").args

    @contextlib.contextmanager
    def one(count=1):
        TRIED[promise] += count
        yield
        SURVIVED[promise] += count

    return one


DIFFERENCES = {}


@pytest.fixture
def differences_seen():
    """Largest relative differences by case, which `make test-distributed` prints."""
    return DIFFERENCES


@pytest.fixture
def many(request):
    """Chooses between what the short form does and what the long one does."""
    return lambda short, long: long if request.config.getoption("long") else short


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("long"):
        terminalreporter.section("measured")
        for promise in sorted(TRIED, key=lambda text: int(text.split()[0])):
            terminalreporter.write_line(f"{promise}: {SURVIVED[promise]:,} of {TRIED[promise]:,}")
        for case, found in DIFFERENCES.items():
            terminalreporter.write_line(f"{case}: " + "  ".join(f"{name} {value:.0e}" for name, value in found.items()))
