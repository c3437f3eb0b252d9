"""Learners that exist only as shapes, and the work of a recipe on them."""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import Dinov2Config, DINOv3ViTConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.recipe import parse_recipe
from vpretrain.scaling.estimate import Workload

HALF_B = Qwen2Config(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True,
)  # fmt: skip
LEARNERS: dict[str, tuple[PreTrainedConfig, int]] = {  # shapes, and rows per GPU of a micro-batch
    "0.5B (Qwen2.5)": (HALF_B, 4),
    "7B (Qwen2.5)": (
        Qwen2Config(
            vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, max_position_embeddings=32_768, tie_word_embeddings=False,
        ),
        2,
    ),
    "70B (Llama 3)": (
        LlamaConfig(
            vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
            num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False,
        ),
        1,
    ),
}  # fmt: skip
VIT_L = DINOv3ViTConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, patch_size=16,
    num_register_tokens=4,
)  # fmt: skip
VIT_S = Dinov2Config(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518, use_mask_token=False
)


def counted(data: dict[str, Any], shape: PreTrainedConfig, arm: str = "v-paper") -> Workload:
    """Count the work of a recipe, with this arm, on a learner that exists only as a configuration."""
    with tempfile.TemporaryDirectory() as directory:
        shape.save_pretrained(directory)
        changes = {"arm": arm, "learner": data["learner"] | {"name": directory}}
        recipe: Recipe = parse_recipe(data | changes)
        counts: Workload = modality_of(recipe).workload(recipe)
        return counts
