"""The benchmark's learner: a small Llama with its own tokenizer, pretrained once with vpretrain's one-hot arm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.fork import Fork
from benchmarks.steering.data import GENERAL, mixture, opened, other_texts, problems
from vpretrain.errors import UserError
from vpretrain.recipe import parse_recipe
from vpretrain.run import run_recipe

LENGTH = 320
STEPS = 1300
_VOCABULARY, _SAMPLE = 512, 400


def pretrained(root: Path, *, steps: int = STEPS) -> Path:
    """Return the directory of the learner, which is pretrained first if it is missing (four minutes)."""
    directory = root / f"pretraining-{steps}"
    if not (directory / "result.json").exists() and Fork(_pretrain, root, directory.name, steps).wait():
        raise UserError("the learner was not pretrained; the reason stands above")
    return directory / "model"


def _pretrain(root: Path, name: str, steps: int) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    start = root / "start"
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    _model(len(tokenizer), tokenizer.eos_token_id).save_pretrained(start)
    tokenizer.save_pretrained(start)
    run_recipe(parse_recipe(_recipe(root, start, name, steps)), overwrite=True)


def _sources() -> list[dict[str, Any]]:
    """General text, and puzzles of many kinds."""
    return mixture(other_texts(GENERAL), 1.0)


def _recipe(root: Path, start: Path, name: str, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "output": str(root),
        "arm": "one-hot",
        "learner": {"name": str(start)},
        "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_fraction": 0.05, "weight_decay": 0.1},
        "stream": {"length": LENGTH, "batch_size": 12, "sources": _sources()},
        "feedback": {"sources": [problems("feedback", 2, 64)], "length": LENGTH},
        "budget": {"steps": steps},
        "evaluation": {"sources": [problems("validation", 3, 64)], "problems": 32, "length": 2 * LENGTH},
        "checkpoint": {"every_minutes": None},
        "tracking": {"trackers": []},
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    texts = []
    for data in _sources():
        source = opened(data)
        texts += [source[i].prompt + source[i].response for i in range(min(len(source), _SAMPLE))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def _model(vocabulary: int, end: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end,
    ))  # fmt: skip
