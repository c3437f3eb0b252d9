"""`vpretrain check` for vision: find errors before the long run, without loading the learner's weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from vpretrain.devices import available
from vpretrain.errors import Unreadable
from vpretrain.inspection.check import activation_bytes, memory_line, one_step
from vpretrain.inspection.doctor import bf16_note
from vpretrain.inspection.reading import SECONDS, Reading, shares
from vpretrain.modality import modality_of
from vpretrain.run.dry_run import few_steps
from vpretrain.types import Model
from vpretrain.vision.assemble import check_sizes
from vpretrain.vision.config import Recipe, SourceConfig
from vpretrain.vision.data.source import open_images, open_labelled
from vpretrain.vision.data.stream import read_for_crops
from vpretrain.vision.installed import check_installed
from vpretrain.vision.model.load import load_config, untrained

_NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}


def check(recipe: Recipe) -> Iterator[str]:
    """Yield a line for everything found in order.

    Raises:
        UserError: the first problem, with its remedy.
    """
    check_installed()
    device = available(recipe.learner.device)
    config = load_config(recipe.learner.name)
    check_sizes(recipe, config.patch_size)
    if "image_size" in config and recipe.stream.global_size > config.image_size:
        size = recipe.stream.global_size
        yield f"note: stream.global_size={size} is above the {config.image_size} pixels the learner was trained at"
    parts = modality_of(recipe).assemble(recipe, tiny_copy(recipe))
    if parts.meta is not None and recipe.value.batch_size > recipe.stream.batch_size:
        asked, there = recipe.value.batch_size, recipe.stream.batch_size
        yield f"note: value.batch_size={asked} is above stream.batch_size={there}: a meta update takes {there} images"
    yield "recipe and images: fine; heads, meta and test share no image (stream and evaluation.classes are not compared)"
    yield from _readings(recipe)
    yield one_step(recipe, parts)
    if warning := few_steps(recipe, parts, recipe.budget.steps):
        yield f"warning: {warning}"
    if recipe.learner.precision == "bf16" and (note := bf16_note(device)):
        yield f"warning: {note}: use learner.precision=fp32"
    yield estimate_memory(recipe)


def _readings(recipe: Recipe) -> Iterator[str]:
    """Read the images of stream, feedback and evaluation for some time; generated ones are sound."""
    files = [(role, source) for role, sources in recipe.roles.items() for source in sources if source.scenes is None]
    for (role, source), seconds in zip(files, shares(len(files), SECONDS), strict=True):
        images, read = _opened(recipe, role, source)
        reading = Reading[object](
            role, source.origin, images, recipe.stream if role == "stream" else None, unit="image"
        )
        for _ in reading.items(map(partial(_outcome, read), range(images)), seconds):
            pass
        yield reading.line()


def _opened(recipe: Recipe, role: str, source: SourceConfig) -> tuple[int, Callable[[int], object]]:
    """Open a source; return the number of its images, and how one is read by its role."""
    if role == "stream":
        images = open_images(source)
        return len(images), partial(read_for_crops, images, recipe.stream.global_size)
    labelled = open_labelled(source)
    return len(labelled), labelled.read


def _outcome(read: Callable[[int], object], index: int) -> object:
    try:
        return read(index)
    except Unreadable as error:
        return error


def tiny_copy(recipe: Recipe) -> Model:
    """Build the learner's architecture with the same number of blocks, width 64 and random weights."""
    config = load_config(recipe.learner.name)
    for name, size in _NARROW.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, size)
    torch.manual_seed(recipe.seed)
    return untrained(config)


def estimate_memory(recipe: Recipe) -> str:
    """Estimate the memory of student with gradients and AdamW, teacher, and activations of one micro-batch."""
    config = load_config(recipe.learner.name)
    with torch.device("meta"):
        model = untrained(config)
    backbone = sum(p.numel() for p in model.parameters())
    dino, stream = recipe.learner.dino, recipe.stream
    widths = (config.hidden_size, dino.hidden, dino.hidden, dino.bottleneck, dino.outputs)
    head = sum(inputs * outputs for inputs, outputs in itertools.pairwise(widths))
    whole, local = ((side // config.patch_size) ** 2 for side in (stream.global_size, stream.local_size))
    tokens = stream.batch_size * (stream.global_views * whole + stream.local_views * local)
    bf16 = recipe.learner.precision == "bf16"
    parts = {
        "student, gradients and AdamW": 16 * (backbone + head),
        "teacher": 4 * (backbone + head),
        "activations": activation_bytes(
            tokens=tokens, width=config.hidden_size, blocks=config.num_hidden_layers, bf16=bf16
        ),
    }
    return memory_line(parts, f"{backbone / 1e6:.0f}M parameters in the backbone")
