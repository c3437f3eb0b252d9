"""Count a vision recipe's FLOPs, parameters and bytes, for `vpretrain estimate`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from vpretrain.errors import UserError
from vpretrain.scaling.cost import Read, Transformer
from vpretrain.scaling.estimate import BF16, FP32, MetaCost, Workload, block_bytes
from vpretrain.vision.assemble import check_sizes, new_learner, subset_of
from vpretrain.vision.config import DinoConfig, Recipe
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.dino import target_patch_count
from vpretrain.vision.model.ijepa import draw_blocks
from vpretrain.vision.model.learner import VisionLearner
from vpretrain.vision.model.load import load_config, untrained
from vpretrain.vision.task.designer import make_designer

_DRAWN = 64  # images whose I-JEPA blocks represent all


@dataclass(frozen=True)
class _Views:
    """Tokens that the passes of student, teacher and objective's head read per image."""

    student: list[Read]
    teacher: Read
    head: list[Read]


def workload(recipe: Recipe) -> Workload:
    """Count a recipe's work from the learner's configuration alone. Raises UserError for recipes that it cannot estimate."""
    arm = recipe.arms[recipe.arm]
    if arm.without_value:
        raise UserError(
            f"arm={recipe.arm} has updates of its own that estimate does not know: use arm=v, v-paper or fixed"
        )
    config = load_config(recipe.learner.name)
    with torch.device("meta"):
        learner = new_learner(recipe.learner, Backbone(untrained(config)))
    backbone, width = learner.backbone, learner.backbone.width
    check_sizes(recipe, backbone.patch_size)
    stream, value, feedback = recipe.stream, recipe.effective_value, recipe.feedback
    steered, designed, bf16 = arm.steered, arm.designer, recipe.learner.precision == "bf16"
    theta: dict[str, Tensor] = dict(learner.named_parameters())
    blocks = len(backbone.blocks)
    size, head = _transformer(backbone.blocks, width), _head(recipe, learner)
    subset = {name: theta[name] for name in subset_of(recipe, learner)} if steered else {}
    first = learner.first_block(subset) or 0
    fraction = (blocks - first) / blocks
    step, meta = _views(recipe, backbone, stream.local_views), _views(recipe, backbone, 0)
    in_S = sum(p.numel() for p in subset.values())
    fed = _whole(backbone, 1, feedback.size)
    mask_flops, phi, mask_bytes = _designer(recipe) if designed else (0.0, 0, 0.0)

    def backward(views: _Views) -> float:
        return sum(map(size.back_through_blocks, views.student)) + sum(map(head.step, views.head))

    def teach(views: _Views) -> float:
        return size.through_blocks(views.teacher) + dino * sum(map(head.forward, views.head[:1]))

    def kept(reads: Iterable[Read], low: bool) -> float:
        return blocks * sum(read.tokens for read in reads) * _block_bytes(config, width, low)

    dino = recipe.learner.objective == "dino"  # only DINO's teacher has a head
    seen, heads = sum(map(size.through_blocks, meta.student)), sum(map(head.forward, meta.head))
    # Per image of a feedback batch: passes for features that the heads need. The gradient over the last MLP or the last blocks
    # starts from what the one recorded in which biases are refitted, unless theta is sharded.
    head_images = feedback.head_batch_size / feedback.batch_size
    fit = (feedback.head_steps * head_images + feedback.refit_biases) * size.through_blocks(fed)
    of_mlp = value.subset == "last-mlp"
    backward_fed = fraction * size.back_through_blocks(fed)
    whole_g_down = size.through_blocks(fed) + backward_fed
    again = 0.0 if of_mlp else fraction * size.through_blocks(fed)
    g_down = again + backward_fed if arm.exact and feedback.refit_biases else whole_g_down
    # Views are not linear in phi, so backward goes down to them. Below S: forward and backward. In S: forward with a tangent,
    # and backward through both. The teacher once; the designer forward and backward.
    by_jvp = 2 * (1 - fraction) * seen + 4 * fraction * seen + 4 * heads + teach(meta) + 3 * mask_flops
    # g_pre through S, then two passes forward and backward through S, and from there down to the views.
    by_differences = (2 * (1 - fraction) + 7 * fraction) * seen + 7 * heads + teach(meta) + 3 * mask_flops
    # The exact task has no designer: a meta update takes g_pre, over all views; a step takes a tangent through S, and under
    # I-JEPA through the predictor.
    g_pre = (1 + 2 * fraction) * sum(map(size.through_blocks, step.student)) + 3 * sum(map(head.forward, step.head))
    entering = step.student[0].tokens  # of the global views
    moved = 1 / stream.global_views if dino else 1.0  # the fraction of the global views that have tangents
    # Of the last MLP by its parameters; of blocks once more with a tangent, of which inputs and weights take a product each.
    through_S = moved * (4.0 * in_S * entering if of_mlp else 3 * fraction * size.through_blocks(step.student[0]))
    tangent_flops = through_S + 3 * (not dino) * sum(map(head.forward, step.head)) if arm.exact else 0.0
    gradient_flops = 0.0
    if not designed:
        by_jvp = by_differences = 0.0
        gradient_flops = (g_pre + teach(step)) * steered * (value.align == "cosine")
    # Forward's graph, and the tangent's or the other difference's.
    on_views = 2 * (kept(meta.student, False) + dino * _outputs_bytes(recipe.learner.dino, meta, width)) + mask_bytes
    every = sum(p.numel() for p in theta.values())
    outputs_bytes = dino * _outputs_bytes(recipe.learner.dino, step, width, low=bf16)
    # Features, and the tangents, target and gradient of those that move.
    outputs_bytes += dino * arm.exact * FP32 * width * entering * (1 + 3 * moved)
    replicated = MetaCost(g_down, fit, by_jvp, fraction * kept([fed], bf16), on_views, gradient_flops=gradient_flops)
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
        parameters=every,
        trained=every,
        teacher=every,
        cast=(size.blocks + head.blocks + head.head) * bf16,
        head_cast=(head.blocks + head.head) * bf16,
        block=size.blocks // blocks,
        blocks=blocks,
        root=every - size.blocks,
        subset=in_S,
        # g_down, u, g_pre, and the stored u; AdamW's P; stored feedback gradients.
        copies=4 + (value.metric == "adamw") + (value.feedback_every > 1),
        designer=phi,
        step_flops=sum(map(size.through_blocks, step.student)) + backward(step) + teach(step),
        designer_flops=mask_flops + tangent_flops,
        activation_bytes=kept(step.student, bf16),
        entry_bytes=sum(read.tokens for read in step.student) * blocks * width * FP32,
        logits_bytes=outputs_bytes,
        chunk_bytes=stream.batch_size * outputs_bytes,
        replicated=replicated,
        sharded=replace(
            replicated,
            feedback_flops=whole_g_down,
            value_flops=by_differences,
            # The heads' features, the teacher; g_down and g_pre, with backward through S; the differences, with backward.
            weights_gathered=feedback.head_steps + feedback.refit_biases + 1 + 2 * (1 + fraction) + 4,
        ),
    )


def _transformer(blocks: nn.ModuleList, width: int) -> Transformer:
    count = sum(p.numel() for p in blocks.parameters())
    return Transformer(count, 0, 4 * len(blocks) * width, count, False)


def _head(recipe: Recipe, learner: VisionLearner) -> Transformer:
    """The objective's head: a few layers on one vector per view (DINO), or a predictor with an output per target patch."""
    head: Any = learner.module.head
    if recipe.learner.objective == "dino":
        return Transformer(0, sum(p.numel() for p in head.parameters()), 0, 0, True)
    size = _transformer(head.blocks, head.mask.shape[0])
    return Transformer(size.blocks, head.outward.weight.numel(), size.attention, size.blocks, True)


def _views(recipe: Recipe, backbone: Backbone, local_views: int) -> _Views:
    stream = recipe.stream
    whole = _whole(backbone, stream.global_views, stream.global_size)
    if recipe.learner.objective == "dino":
        local = _whole(backbone, local_views, stream.local_size)
        patches = math.prod(backbone.patches(stream.global_size, stream.global_size))
        outputs = 1 + target_patch_count(recipe.learner.dino, patches)
        heads = [Read(0, outputs * stream.global_views, 0), Read(0, local_views, 0)]
        return _Views([whole, local], whole, heads)
    grid = stream.global_size // backbone.patch_size
    blocks = draw_blocks(recipe.learner.ijepa, (grid, grid), _DRAWN, seed=0)
    context, (targets, patches) = blocks.context_BC.shape[1], blocks.target_BMN.shape[1:]
    views, length = stream.global_views, context + backbone.prefix
    student = Read(views * length, 0, length)
    predicted = Read(views * targets * (context + patches), views * targets * patches, context + patches)
    return _Views([student], whole, [predicted])


def _outputs_bytes(config: DinoConfig, views: _Views, width: int, *, low: bool = False) -> float:
    """Return the bytes per image that DINO's head and loss hold at once, for class tokens and patches alike."""
    student, teacher = sum(read.targets for read in views.head), views.head[0].targets
    tensors = 2 * (
        student + teacher
    )  # the student's outputs and their log-softmax, the teacher's outputs and the targets
    # In the head: what enters its layers and the activations between them, and the bottleneck before it is normalised.
    inside = (BF16 if low else FP32) * (width + 4 * config.hidden + config.bottleneck) + FP32 * config.bottleneck
    return FP32 * config.outputs * tensors + inside * student


def _whole(backbone: Backbone, views: int, pixels: int) -> Read:
    length = (pixels // backbone.patch_size) ** 2 + backbone.prefix
    return Read(views * length, 0, length)


def _block_bytes(config: PretrainedConfig, width: int, low: bool) -> int:
    inner = getattr(config, "intermediate_size", None) or int(config.mlp_ratio * width)
    gated = getattr(config, "use_gated_mlp", False) or getattr(config, "use_swiglu_ffn", False)
    kept = block_bytes(width, width, inner, norm=1, gated=gated, bf16=low)
    # A layer scale after each half, if there is one, stores its input.
    return kept + 2 * width * (BF16 if low else FP32) * hasattr(config, "layerscale_value")


def _designer(recipe: Recipe) -> tuple[float, int, float]:
    """Return FLOPs of an image's masks (counted by torch on tensors without data), parameters, and bytes of activations."""
    views, side = recipe.stream.global_views, recipe.stream.global_size
    with torch.device("meta"):
        designer, crops = make_designer(recipe.designer), torch.empty(views, 3, side, side)
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size()
            return tensor

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            designer(crops)
    return float(counter.get_total_flops()), sum(p.numel() for p in designer.parameters()), float(kept)
