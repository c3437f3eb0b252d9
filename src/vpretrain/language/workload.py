"""Counts of a language recipe, for `vpretrain estimate`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from vpretrain.errors import UserError
from vpretrain.language.assemble import check_sizes, new_model
from vpretrain.language.config import Recipe
from vpretrain.language.model.frozen_blocks import FrozenBlocksCache
from vpretrain.language.model.load import load_config
from vpretrain.language.model.loss import CHUNK
from vpretrain.language.task.designer import TopKDesigner
from vpretrain.method.subset import alignment_subset, blocks_of
from vpretrain.scaling.cost import Read, Transformer, designer_floor
from vpretrain.scaling.estimate import BF16, FP32, MetaCost, Workload, block_bytes
from vpretrain.types import Model

_CANDIDATE_BYTES = 40  # per candidate and target: its id, logit, log p, score, log r and q


def workload(recipe: Recipe) -> Workload:
    """Count a recipe from the learner's configuration alone. Raises UserError for unsupported arms and architectures."""
    arm = recipe.arms[recipe.arm]
    if arm.direct or (arm.tangent and not arm.exact):
        raise UserError(
            f"arm={recipe.arm} has passes of its own that estimate does not know: use arm=v, or arm=one-hot"
        )
    if arm.steered and recipe.feedback.reward == "answer":
        raise UserError(
            "feedback.reward=answer has the learner attempt problems, which estimate does not count: use profile, or set "
            "feedback.reward=solution"
        )
    config = load_config(recipe.learner.name)
    check_sizes(recipe, config)
    text = config.get_text_config()
    with torch.device("meta"):
        module = nn.ModuleDict({"model": new_model(recipe, config)})
    model: Model = module["model"]
    parameters = dict(module.named_parameters())
    trained = {name: p.numel() for name, p in parameters.items() if p.requires_grad}
    blocks = list(blocks_of(module)[1])
    in_blocks = [p for block in blocks for p in block.parameters()]
    head = model.get_output_embeddings().weight
    query, inner, gated = _widths(recipe, text, blocks[-1])
    size = Transformer(
        blocks=sum(p.numel() for p in in_blocks),
        head=head.numel(),
        attention=4 * len(blocks) * query,
        trained_blocks=sum(p.numel() for p in in_blocks if p.requires_grad),
        trained_head=head.requires_grad,
    )
    stream, value, feedback = recipe.stream, recipe.effective_value, recipe.feedback
    steered, designed = arm.steered, arm.designer
    subset = alignment_subset(module, value.subset) if steered else ()
    lower = FrozenBlocksCache.below(module, subset) if steered else None
    above = len(blocks) - (len(lower.blocks) if lower else 0)
    domains = len({source.domain for source in feedback.sources})
    directions = domains if value.domains == "matched" else 1
    # As if every token were a target: how many are not depends on the data.
    row, meta, fed = (Read(length, length, length) for length in (stream.length, value.length, feedback.length))
    bf16, width, vocabulary = recipe.learner.precision == "bf16", text.hidden_size, text.vocab_size
    element = BF16 if bf16 else FP32
    phi = _designer_size(recipe, head) if designed else 0
    k = recipe.candidates

    # For backward an RMS norm keeps its input and its output, a layer norm its input only.
    norm = 1 if any(isinstance(part, nn.LayerNorm) for part in blocks[-1].modules()) else 2

    def kept(blocks: int, low: bool) -> int:
        return blocks * block_bytes(width, query, inner, norm=norm, gated=gated, bf16=low)

    hidden = recipe.designer.hidden_size
    graph = recipe.designer.layers * block_bytes(hidden, hidden, 4 * hidden, norm=2, gated=True, bf16=False)

    fraction = above / len(blocks)
    by_jvp, by_differences = size.value_floor(fraction, meta, phi), size.difference_floor(fraction, meta, phi)
    kept_of_both = fed.tokens * kept(above, bf16), meta.tokens * (kept(above, False) + graph)
    replicated = MetaCost(size.feedback_floor(fraction, fed), 0.0, by_jvp if designed else 0.0, *kept_of_both)
    return Workload(
        modality=recipe.modality,
        memory_knobs=recipe.memory_knobs,
        bf16=bf16,
        batch_size=stream.batch_size,
        accumulation=stream.accumulation,
        every_steps=value.every_steps,
        meta_rows=value.batch_size if steered else 0,
        feedback_rows=feedback.batch_size if steered else 0,
        feedback_every=value.feedback_every,
        domains=domains,
        directions=directions,
        parameters=sum(p.numel() for p in parameters.values()),
        trained=sum(trained.values()),
        cast=(size.blocks + size.head) * bf16,
        head_cast=size.head * bf16,
        block=size.blocks // len(blocks),
        blocks=len(blocks),
        root=sum(p.numel() for p in parameters.values()) - size.blocks,
        subset=sum(trained[name] for name in subset),
        # g_down and u per direction, g_pre, and the u that stays; AdamW's P; kept feedback gradients.
        copies=2 * directions + 2 + (value.metric == "adamw") + domains * (value.feedback_every > 1),
        designer=phi,
        step_flops=size.step(row),
        # In place of a designer the exact task has a tangent: in each matrix of S, one product with u, one with its tangent.
        designer_flops=designer_floor(phi, row.tokens)
        + (4.0 * sum(trained[n] for n in subset) * row.targets if arm.exact else 0.0),
        # Scores read the candidates' embeddings; the loss reads them for the states' gradient, and adds to the head's.
        gathered_bytes=row.targets * k * width * (FP32 + element + 2 * FP32 * size.trained_head) if steered else 0.0,
        # Besides the blocks': the last norm's, the states that the head reads and their gradient, and the kept candidates'.
        activation_bytes=row.tokens * (kept(len(blocks), bf16) + 4 * width * FP32 + 4 * k * FP32),
        entry_bytes=row.tokens * len(blocks) * width * FP32,
        logits_bytes=row.targets * vocabulary * (FP32 + BF16 * bf16),
        chunk_bytes=CHUNK * (FP32 + BF16 * bf16),
        head_gradient_bytes=size.head * FP32 * size.trained_head,
        below_bytes=row.tokens * width * FP32 if lower else 0.0,
        construction_bytes=row.tokens * (4 * width * FP32 + k * _CANDIDATE_BYTES) if steered else 0.0,
        replicated=replicated,
        sharded=replace(
            replicated,
            value_flops=by_differences if designed else 0.0,
            # g_down and g_pre forward, and back through S; the two differences, in which blocks that only replay a cache
            # are gathered as well.
            weights_gathered=(domains + directions) * (1 + fraction) + 2 * directions,
        ),
    )


def _designer_size(recipe: Recipe, head: Tensor) -> int:
    with torch.device("meta"):
        designer = TopKDesigner(recipe.designer, head, max(recipe.stream.length, recipe.value.length))
    return sum(p.numel() for p in designer.parameters())


def _widths(recipe: Recipe, text: PretrainedConfig, block: nn.Module) -> tuple[int, int, bool]:
    """Widths of queries and feed-forward part, and whether that has a gate. Raises UserError for other architectures."""
    heads, experts = (getattr(text, name, None) for name in ("num_attention_heads", "num_local_experts"))
    if heads is None or experts or getattr(text, "num_experts", None):
        raise UserError(
            f"{recipe.learner.name} is a {text.model_type}: estimate knows transformers whose blocks are attention and one "
            "feed-forward part"
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    matrices = [p for p in block.parameters() if p.ndim == 2 and {inner, text.hidden_size} == set(p.shape)]
    return heads * head_dim, inner, len(matrices) > 2
