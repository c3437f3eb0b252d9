"""What there is to measure with: a learner, its tokenizer alone or neither, and GSM8K. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.gpu.settings import CALIBRATING, LEARNERS
from benchmarks.speed.settings import PACKAGED
from vpretrain.errors import UserError
from vpretrain.files import read_json
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.source import open_source
from vpretrain.language.model.load import PACKAGES, load_tokenizer
from vpretrain.pretrained import resolve

GSM8K = Path("data/gsm8k/train.jsonl")
_SHAPE = {"hidden_size": 576, "num_hidden_layers": 30}  # SmolLM2-135M's
_END = "<|end|>"
_TOKENS, _TEXTS = 4096, 500  # of the generated tokenizer: its vocabulary, and the problems that it is trained on


@dataclass(frozen=True)
class Given:
    """What a run of the benchmark has.

    Attributes:
        rehearsed: whether it runs on the CPU, with tiny sizes.
        learner: what recipes name as their learner, at least for its tokenizer; empty if no text can be generated.
        weights: whether that is SmolLM2-135M with its weights.
        gsm8k: GSM8K's train.jsonl, which may be missing.
        remark: what it does without; empty if nothing is missing.
    """

    rehearsed: bool
    learner: str
    weights: bool = True
    gsm8k: Path = GSM8K
    remark: str = ""

    @property
    def learners(self) -> dict[str, tuple[str, ...]]:
        """The learners that can be timed, each with its arms."""
        return LEARNERS if self.weights else {CALIBRATING: LEARNERS[CALIBRATING]}


def given(learner: Path | None, gsm8k: Path, aside: Path, *, rehearsed: bool) -> Given:
    """Find out what there is.

    Args:
        learner: a directory of save_pretrained, with or without weights; None: the packaged learner, if it is installed.
        gsm8k: GSM8K's train.jsonl.
        aside: where a tokenizer may be written.
        rehearsed: whether on the CPU, with tiny sizes.

    Raises:
        UserError: the directory has no tokenizer.
    """
    gsm8k = gsm8k.resolve()  # processes start in the repository's root
    if learner is not None:
        directory = _directory(learner, aside)
        load_tokenizer(str(directory))
        weights = _is_135m(directory)
        remark = "" if weights else "--learner has no weights of SmolLM2-135M: only its tokenizer is used"
        return Given(rehearsed, str(directory), weights, gsm8k, remark)
    try:
        resolve(PACKAGED, PACKAGES)
    except UserError as error:
        made = generate_tokenizer(aside / "tokenizer") if not missing(["reasoning_gym"]) else ""
        remark = f"{error}; or give --learner PATH. What needs SmolLM2-135M is left out"
        remark += ", and a generated tokenizer takes the place of its own" if made else ""
        return Given(rehearsed, made, False, gsm8k, remark)
    return Given(rehearsed, PACKAGED, True, gsm8k)


def missing(modules: Sequence[str]) -> list[str]:
    """Return those of the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def generate_tokenizer(directory: Path) -> str:
    """Write a byte-level tokenizer that was trained on generated problems; return its directory."""
    problems = open_source(SourceConfig(reasoning_gym="gsm_symbolic", size=_TEXTS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENS,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((example.prompt + example.response for example in problems), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END).save_pretrained(directory)
    LlamaConfig().save_pretrained(directory)  # without a configuration transformers loads no tokenizer
    return str(directory)


def _directory(learner: Path, aside: Path) -> Path:
    """The directory of a learner; of a tokenizer without a configuration, a copy that has one."""
    if not learner.is_dir():
        raise UserError(f"--learner {learner}: there is no such directory: give one written by save_pretrained")
    directory = Path(resolve(str(learner), PACKAGES)).resolve()
    if (directory / "config.json").exists():
        return directory
    copied = aside / "tokenizer"
    shutil.copytree(directory, copied)
    LlamaConfig().save_pretrained(copied)
    return copied


def _is_135m(directory: Path) -> bool:
    found = read_json(directory / "config.json")
    return any(directory.glob("*.safetensors")) and all(found.get(name) == size for name, size in _SHAPE.items())
