"""`vpretrain check`: find errors before the long run, without loading the learner's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.devices import available
from vpretrain.errors import UserError
from vpretrain.inspection.check import memory_line, one_step
from vpretrain.inspection.doctor import bf16_note
from vpretrain.inspection.reading import SECONDS, Reading, shares
from vpretrain.language.assemble import check_sizes, new_model
from vpretrain.language.config import Recipe, SourceConfig, StreamConfig
from vpretrain.language.data.example import Example
from vpretrain.language.data.source import IndexedSource, open_source
from vpretrain.language.data.stream import HELD_BACK, usable
from vpretrain.language.model.load import load_config, load_tokenizer
from vpretrain.language.model.loss import CHUNK
from vpretrain.modality import modality_of
from vpretrain.run.dry_run import few_steps
from vpretrain.run.left_out import by_source, lines
from vpretrain.types import Model

GENERATED = 2000  # examples of a source that is no file: they can be read, and take long to make
_NARROW = {
    "hidden_size": 64, "n_embd": 64, "intermediate_size": 64, "n_inner": 64, "head_dim": 16,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 16,
}  # fmt: skip


def check(recipe: Recipe) -> Iterator[str]:
    """Yield a line for every check that passes, and for every source of which a run would leave examples out.

    Raises:
        UserError: the first check that fails, with its remedy.
    """
    device = available(recipe.learner.device)
    check_sizes(recipe, load_config(recipe.learner.name))
    parts = modality_of(recipe).assemble(recipe, tiny_copy(recipe))
    yield f"recipe, data and tokenizer: fine; feedback and evaluation hold {len(parts.held_back)} problems"
    tokenizer, sources = load_tokenizer(recipe.learner.name), recipe.stream.sources
    scans = [
        _scan(source, recipe.stream, tokenizer, parts.held_back, seconds)
        for source, seconds in zip(sources, shares(len(sources), SECONDS), strict=True)
    ]
    scanned = sum(reading.read for reading, _ in scans)
    yield f"roles: feedback, evaluation and {scanned:,} stream examples are disjoint"
    yield from (reading.line() for reading, _ in scans)
    yield from lines(parts.left_out({"shards": {}}))  # of feedback and evaluation: nothing of the stream is read there
    found = by_source((f"stream {source.origin}", reasons) for source, (_, reasons) in zip(sources, scans, strict=True))
    yield from (f"{line}, of those that were read" for line in lines(found))
    yield one_step(recipe, parts)
    if warning := few_steps(recipe, parts, recipe.budget.steps):
        yield f"warning: {warning}"
    if recipe.learner.precision == "bf16" and (note := bf16_note(device)):
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
    return new_model(recipe, config).train()


def estimate_memory(recipe: Recipe) -> str:
    """Estimate memory: weights, gradients and AdamW of learner and designer, activations and loss of one micro-batch."""
    config = load_config(recipe.learner.name)
    with torch.device("meta"):
        model = new_model(recipe, config)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = config.get_text_config()
    tokens = recipe.stream.batch_size * recipe.stream.length
    width = recipe.designer.hidden_size
    designer = 12 * recipe.designer.layers * width**2 + 4 * width * text.hidden_size
    activation_bytes = 2 if recipe.learner.precision == "bf16" else 4
    parts = {
        "weights": 4 * total,
        "gradients and AdamW": 12 * trained,
        "loss": (2 if recipe.learner.precision == "bf16" else 1) * 4 * min(CHUNK, tokens * text.vocab_size)
        + (0 if recipe.learner.lora else 4 * text.vocab_size * text.hidden_size),
        "activations": 34 * activation_bytes * tokens * text.hidden_size * text.num_hidden_layers,
        "designer": 16 * designer if recipe.has_designer else 0,
    }
    return memory_line(parts, f"{total / 1e6:.0f}M parameters, {trained / 1e6:.0f}M trained")


def _scan(
    source: SourceConfig,
    stream: StreamConfig,
    tokenizer: PreTrainedTokenizerBase,
    own: frozenset[str],
    seconds: float,
) -> tuple[Reading[Example], Counter[str]]:
    """Read a source for some time; return how far, and how many examples a run would leave out, by reason."""
    opened = open_source(source, skips=stream.on_error == "skip")
    total = len(opened) if isinstance(opened, IndexedSource) else source.limit
    most = None if source.path is not None or source.hub is not None else GENERATED
    reading = Reading[Example]("stream", source.origin, total, stream, most=most)
    reasons: Counter[str] = Counter()
    for example in reading.items(opened.outcomes(), seconds):
        found = usable(example, tokenizer, stream, own)
        if isinstance(found, str):
            reasons[found] += 1
    if shared := reasons[HELD_BACK]:
        raise UserError(
            f"{source.origin}: {shared} of its first {reading.read} examples are problems of feedback or evaluation: keep them "
            "apart with skip and limit, other files, or disjoint task_indices (a run would hold them back)"
        )
    return reading, reasons
