"""Tiny learners with random weights, in the shapes of real families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Dinov2Config,
    DINOv3ViTConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    IJepaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageState

VOCABULARY = 61
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
FAMILIES = ["llama", "llama-untied", "qwen2", "qwen2-untied", "gpt2", "gemma2"]
FURTHER_FAMILIES = ["qwen3", "gemma3", "qwen3-moe", "mamba"]
OTHER_SHAPES = ["mistral", "gpt-neox", "phi", "opt"]  # attention beside the MLP, or an MLP that is no module


def tiny_model(family: str = "llama", *, seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """A causal LM with three blocks of width 32."""
    sizes = _SIZES | {"vocab_size": vocabulary}
    tied = not family.endswith("-untied")
    config: Any
    match family.removesuffix("-untied"):
        case "llama":
            config = LlamaConfig(**sizes, tie_word_embeddings=tied)
        case "qwen2":
            config = Qwen2Config(**sizes, tie_word_embeddings=tied)
        case "gemma2":
            # Narrow caps, so that they bend the logits and the attention scores.
            config = Gemma2Config(
                **sizes, head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=2.0, sliding_window=64
            )
        case "qwen3":
            config = Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=tied)
        case "gemma3":
            config = Gemma3TextConfig(**sizes, head_dim=8, sliding_window=64)
        case "qwen3-moe":
            config = Qwen3MoeConfig(
                **sizes,
                head_dim=8,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=24,
                tie_word_embeddings=tied,
            )
        case "mistral":
            config = MistralConfig(**sizes, sliding_window=64)
        case "gpt-neox":
            config = GPTNeoXConfig(**sizes, use_parallel_residual=True, hidden_dropout=0.1)
        case "phi":
            config = PhiConfig(**sizes, resid_pdrop=0.1)
        case "opt":
            config = OPTConfig(
                vocab_size=vocabulary, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, init_std=0.1,
                max_position_embeddings=128, word_embed_proj_dim=24, bos_token_id=0, eos_token_id=0, pad_token_id=0,
            )  # fmt: skip
        case "mamba":
            config = MambaConfig(
                vocab_size=vocabulary, hidden_size=32, num_hidden_layers=3, state_size=4, expand=2, time_step_rank=4,
                eos_token_id=0, pad_token_id=0, bos_token_id=0, initializer_range=0.1,
            )  # fmt: skip
        case "gpt2":
            config = GPT2Config(
                vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0,
                initializer_range=0.1, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
            )  # fmt: skip
        case _:
            raise ValueError(family)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).train()


class Largest(TorchDispatchMode):
    """Within, `numel` is that of the largest dense tensor that any operation has made."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and not tensor.is_sparse:
                self.numel = max(self.numel, tensor.numel())
        return made


VISION_FAMILIES = ["dinov2", "dinov3", "ijepa"]


def tiny_vision_model(family: str = "dinov2", *, seed: int = 0) -> Any:
    """A vision transformer with three blocks of width 32 and patches of 8 pixels."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32,
        "initializer_range": 0.1,
    }  # fmt: skip
    config: Any
    match family:
        case "dinov2":
            config = Dinov2Config(**sizes, mlp_ratio=2, drop_path_rate=0.1)
        case "dinov3":
            config = DINOv3ViTConfig(**sizes, intermediate_size=64, num_register_tokens=2)
        case "ijepa":
            config = IJepaConfig(**sizes, intermediate_size=64)
        case _:
            raise ValueError(family)
    torch.manual_seed(seed)
    return AutoModel.from_config(config).train()


def all_logits(state: LanguageState) -> Tensor:
    """z_t over the whole vocabulary, [N, V]."""
    return state.logits.candidate_logits(torch.arange(VOCABULARY).expand(len(state.logits.z_NK), -1))


def random_batch(rows: int = 3, length: int = 24, *, seed: int = 0, domain: str = "general") -> TokenBatch:
    """Rows of two packed documents each, the first third of each document without weight."""
    generator = torch.Generator().manual_seed(seed)
    half = length // 2
    positions = torch.cat([torch.arange(half), torch.arange(length - half)]).expand(rows, -1)
    return TokenBatch(
        torch.randint(1, VOCABULARY, (rows, length), generator=generator),
        positions,
        (positions > half // 3).float(),
        (domain,) * rows,
        tuple((f"{seed}-{row}",) for row in range(rows)),
    )
