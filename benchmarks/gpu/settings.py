"""The sizes of what is measured on a GPU, and of its rehearsal on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.speed.arm import HF
from benchmarks.speed.settings import language_model

# Learners and arms in the order in which they are measured: docs/scaling.md is calibrated by the first, which has `v-paper`.
CALIBRATING = "qwen2.5-0.5b"
LEARNERS: dict[str, tuple[str, ...]] = {
    CALIBRATING: ("one-hot", "v", HF, "v-paper"),
    "smollm2-135m": ("one-hot", "v", HF),
}
SHARDED = ("one-hot", "v")  # on the first of these learners


@dataclass(frozen=True)
class Sizes:
    """The sizes of the steps, all in bf16.

    Attributes:
        rows, length: of a micro-batch.
        micro_batches: of a step, for each measured size of it.
        periods: timed periods of steps, each with one meta update.
        tiny: whether a tiny model with random weights takes the place of every learner.
    """

    rows: int
    length: int
    micro_batches: tuple[int, ...]
    periods: int
    tiny: bool = False

    def model(self, learner: str, device: str) -> Any:
        """Make the learner on a device; None if it is the packaged one."""
        return _tiny(device) if self.tiny else language_model(learner, device)


ON_GPU = Sizes(rows=8, length=1024, micro_batches=(2, 8), periods=2)  # 16k and 64k tokens per step
REHEARSED = Sizes(rows=2, length=256, micro_batches=(1, 2), periods=1, tiny=True)


def _tiny(device: str) -> Any:
    """Random weights, with a vocabulary of SmolLM2's size: its tokenizer, or one with fewer tokens, is used."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49_152, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(device)
