"""`vpretrain check`: find errors before the long run, without loading the learner's weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from vpretrain import pretrained
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.inspection.check import memory_line, one_step
from vpretrain.inspection.doctor import bf16_note
from vpretrain.language.assemble import assemble, check_sizes
from vpretrain.language.config import Recipe, SourceConfig
from vpretrain.language.data.source import IndexedSource, open_source
from vpretrain.language.model.load import device, load_config, with_adapters
from vpretrain.language.model.loss import CHUNK
from vpretrain.types import Model

SCANNED = 2000  # stream examples per source that are compared with feedback and evaluation
_NARROW = {
    "hidden_size": 64, "n_embd": 64, "intermediate_size": 64, "n_inner": 64, "head_dim": 16,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 16,
}  # fmt: skip


def check(recipe: Recipe) -> Iterator[str]:
    """Yield a line for every check that passes.

    Raises:
        UserError: the first check that fails, with its remedy.
    """
    check_sizes(recipe, load_config(recipe.learner.name))
    parts = assemble(recipe, tiny_copy(recipe))
    yield f"recipe, data and tokenizer: fine; feedback and evaluation hold {len(parts.held_back)} problems"
    scanned = sum(_scan(source, parts.held_back) for source in recipe.stream.sources)
    yield f"roles: feedback, evaluation and the first {scanned} stream examples are disjoint"
    yield one_step(recipe, parts)
    if recipe.learner.precision == "bf16" and (note := bf16_note(torch.device(device(recipe.learner)))):
        yield f"warning: {note}: use learner.precision=fp32"
    yield estimate_memory(recipe)


def tiny_copy(recipe: Recipe) -> Model:
    """The learner's architecture with the same number of blocks and vocabulary, 64 wide, with random weights."""
    config = load_config(recipe.learner.name)
    text = config.get_text_config()
    for name, size in _NARROW.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, size)
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=pretrained.trusted)
    return (with_adapters(model, recipe.learner.lora) if recipe.learner.lora else model).train()


def estimate_memory(recipe: Recipe) -> str:
    """Estimate memory: weights, gradients and AdamW of learner and designer, activations and loss of one micro-batch."""
    config = load_config(recipe.learner.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=pretrained.trusted)
        if recipe.learner.lora:
            model = with_adapters(model, recipe.learner.lora)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = config.get_text_config()
    tokens = recipe.stream.batch_size * recipe.stream.length
    width = recipe.designer.hidden_size
    designer = 12 * recipe.designer.layers * width**2 + 4 * width * text.hidden_size
    activation_bytes = 2 if recipe.learner.precision == "bf16" else 4
    parts = {
        "weights": 4 * total,
        "gradients and AdamW": 12 * trainable,
        "loss": (2 if recipe.learner.precision == "bf16" else 1) * 4 * min(CHUNK, tokens * text.vocab_size)
        + (0 if recipe.learner.lora else 4 * text.vocab_size * text.hidden_size),
        "activations": 34 * activation_bytes * tokens * text.hidden_size * text.num_hidden_layers,
        "designer": 16 * designer if recipe.has_designer else 0,
    }
    return memory_line(parts, f"{total / 1e6:.0f}M parameters, {trainable / 1e6:.0f}M trained")


def _scan(source: SourceConfig, own: frozenset[str]) -> int:
    opened = open_source(source)
    count = min(SCANNED, len(opened)) if isinstance(opened, IndexedSource) else min(SCANNED, source.limit or SCANNED)
    shared = 0
    with steady(f"{source.origin[-18:]:>18}", count) as done:
        for index in range(count):
            example = opened[index] if isinstance(opened, IndexedSource) else opened.next()
            shared += example.key in own
            done(index + 1)
    if shared:
        raise UserError(
            f"{source.origin}: {shared} of its first {count} examples are problems of feedback or evaluation: keep them apart "
            "with skip and limit, other files, or disjoint task_indices (a run would hold them back)"
        )
    return count
