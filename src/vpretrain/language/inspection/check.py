"""`vpretrain check`: find errors before the long run, without loading the learner's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.devices import available
from vpretrain.errors import UserError
from vpretrain.inspection.check import activation_bytes, memory_line, one_step
from vpretrain.inspection.doctor import bf16_note
from vpretrain.inspection.reading import SECONDS, Reading, shares
from vpretrain.language.assemble import check_sizes, new_model
from vpretrain.language.config import Recipe, SourceConfig, StreamConfig
from vpretrain.language.data.chat import remark
from vpretrain.language.data.encode import Document, fitted
from vpretrain.language.data.example import Example, key_of
from vpretrain.language.data.feedback import LanguageFeedback, problems
from vpretrain.language.data.source import IndexedSource, open_source
from vpretrain.language.data.stream import HELD_BACK, usable
from vpretrain.language.evaluation.solve import Comparison, compared_as, reference
from vpretrain.language.model.load import load_config, load_tokenizer
from vpretrain.language.model.loss import CHUNK
from vpretrain.language.verified import VerifiedFeedback
from vpretrain.modality import modality_of
from vpretrain.plain import counted
from vpretrain.run.dry_run import few_steps
from vpretrain.run.left_out import by_source, lines
from vpretrain.run.parts import Parts
from vpretrain.types import Model

GENERATED = 2000  # examples of a source that is no file: they can be read, and take long to make
MEASURED = 2000  # examples of feedback and evaluation whose length is looked at
_END = 40  # characters of a response that show where its answer comes from
_AS: dict[Comparison, str] = {
    "number": "as numbers", "words": "as text", "mathematics": "as formulas", "scorer": "by their own scorer",
}  # fmt: skip
_NARROW = {
    "hidden_size": 64, "n_embd": 64, "intermediate_size": 64, "n_inner": 64, "head_dim": 16,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 16,
}  # fmt: skip


@dataclass(frozen=True)
class _Scan:
    """How far a source of the stream was read, how many examples a run would leave out, by reason, and how many cut."""

    reading: Reading[Example]
    reasons: Counter[str]
    cut: int


def check(recipe: Recipe) -> Iterator[str]:
    """Yield a line for every check that passes, and for every source of which a run would leave examples out.

    Raises:
        UserError: the first check that fails, with its remedy.
    """
    device = available(recipe.learner.device)
    check_sizes(recipe, load_config(recipe.learner.name))
    parts = modality_of(recipe).assemble(recipe, tiny_copy(recipe))
    own = _pairs(recipe, parts)
    counts = ", ".join(f"{role} {len({example.key for example in of}):,}" for role, of in own.items())
    yield f"recipe, data and tokenizer: fine; problems: {counts} (evaluation.problems={recipe.evaluation.problems} at most)"
    tokenizer, sources = load_tokenizer(recipe.learner.name), recipe.stream.sources
    answers = frozenset(key_of(text) for of in own.values() for example in of for text in _with_response(example))
    if (found_by := remark([*sources, *recipe.feedback.sources], tokenizer)) is not None:
        yield found_by
    scans = [
        _scan(source, recipe.stream, tokenizer, parts.held_back, answers, seconds)
        for source, seconds in zip(sources, shares(len(sources), SECONDS), strict=True)
    ]
    scanned = sum(scan.reading.read for scan in scans)
    examples = counted(scanned, "stream example")
    yield f"roles: feedback, evaluation and {examples} share no problem; no raw text is one of their responses"
    yield from (scan.reading.line() for scan in scans)
    yield from lines(parts.left_out({"shards": {}}))  # of feedback and evaluation: nothing of the stream is read there
    found = by_source((f"stream {scan.reading.origin}", scan.reasons) for scan in scans)
    yield from (f"{line}, of those that were read" for line in lines(found))
    yield from _cut_line("stream", sum(scan.cut for scan in scans), scanned, recipe.stream.length)
    for role, of in own.items():
        length = getattr(recipe, role).length
        if role == "evaluation" or recipe.feedback.reward != "answer":  # else the learner's attempts take their place
            cut = sum(_is_cut(example, tokenizer, length) for example in of[:MEASURED])
            yield from _cut_line(role, cut, len(of[:MEASURED]), length)
    yield from _compared_line(own["evaluation"][: recipe.evaluation.pass_at_1_problems])
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
    bf16 = recipe.learner.precision == "bf16"
    parts = {
        "weights": 4 * total,
        "gradients and AdamW": 12 * trained,
        "loss": (2 if bf16 else 1) * 4 * min(CHUNK, tokens * text.vocab_size)
        + (0 if recipe.learner.lora else 4 * text.vocab_size * text.hidden_size),
        "activations": activation_bytes(
            tokens=tokens, width=text.hidden_size, blocks=text.num_hidden_layers, bf16=bf16
        ),
        "designer": 16 * designer if recipe.has_designer else 0,
    }
    return memory_line(parts, f"{total / 1e6:.0f}M parameters, {trained / 1e6:.0f}M trained")


def _scan(
    source: SourceConfig,
    stream: StreamConfig,
    tokenizer: PreTrainedTokenizerBase,
    own: frozenset[str],
    answers: frozenset[str],
    seconds: float,
) -> _Scan:
    """Read a source for some time.

    Raises UserError if examples are problems that other roles `own`, or raw texts that are `answers` to them.
    """
    opened = open_source(source, skips=stream.on_error == "skip")
    total = len(opened) if isinstance(opened, IndexedSource) else source.limit
    most = None if source.path is not None or source.hub is not None else GENERATED
    reading = Reading[Example]("stream", source.origin, total, stream, most=most)
    reasons: Counter[str] = Counter()
    cut = trained_on = 0
    for example in reading.items(opened.outcomes(), seconds):
        found = usable(example, tokenizer, stream, own)
        if isinstance(found, str):
            reasons[found] += 1
        elif not example.prompt:
            trained_on += example.key in answers
        elif len(found) == stream.length:
            cut += _is_cut(example, tokenizer, stream.length)
    if shared := reasons[HELD_BACK]:
        raise UserError(
            f"{source.origin}: {shared} of its first {reading.read} examples are problems of feedback or evaluation: keep them "
            "apart with skip and limit, other files, or disjoint task_indices (a run would hold them back)"
        )
    if trained_on:
        raise UserError(
            f"{source.origin}: {trained_on} of its first {reading.read} texts are responses of feedback or evaluation (a run "
            "would train on them): give other files, or prompt and response in place of text and each role a part"
        )
    return _Scan(reading, reasons, cut)


def _pairs(recipe: Recipe, parts: Parts) -> dict[str, list[Example]]:
    """The pairs of feedback and evaluation."""
    assert isinstance(parts.feedback, LanguageFeedback | VerifiedFeedback)
    feedback = [example for of in parts.feedback.examples.values() for example in of]
    return {"feedback": feedback, "evaluation": problems(recipe.evaluation.sources, recipe.evaluation.problems)[0]}


def _with_response(example: Example) -> tuple[str, str]:
    """A pair's response alone and after its problem, as a stream of raw text may hold them."""
    return example.solution, f"{example.problem} {example.solution}"


def _is_cut(example: Example, tokenizer: PreTrainedTokenizerBase, length: int) -> bool:
    found = fitted(example, tokenizer, length + 1)
    return isinstance(found, Document) and len(found) > length


def _cut_line(role: str, cut: int, of: int, length: int) -> Iterator[str]:
    if cut:
        yield f"{role}: {cut:,} of the first {of:,} examples are longer than {role}.length={length} tokens and are cut there"


def _compared_line(asked: Sequence[Example]) -> Iterator[str]:
    """Say what the answers of the problems of Pass@1 are taken to be."""
    if asked:
        kinds = ", ".join(f"{count} {_AS[kind]}" for kind, count in Counter(map(compared_as, asked)).items())
        first, end = reference(asked[0]), " ".join(asked[0].response.split())[-_END:]
        yield f"Pass@1 compares answers: {kinds}; the first true one is {first!r} (its response ends in {end!r})"
