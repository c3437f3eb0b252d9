"""Build the parts of a language run from its recipe. All that can be wrong is found here, before any training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from vpretrain import distributed, pretrained
from vpretrain.console import note
from vpretrain.devices import available
from vpretrain.errors import UserError
from vpretrain.language.arms import Arm
from vpretrain.language.config import ControlConfig, DesignerConfig, Recipe, SourceConfig, ValueConfig
from vpretrain.language.data.chat import has_markers
from vpretrain.language.data.feedback import LanguageFeedback, check_roles, problems
from vpretrain.language.data.stream import LanguageStream, rows_of
from vpretrain.language.evaluation.evaluate import Evaluation
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner, LanguageState
from vpretrain.language.model.load import PACKAGES, load_config, load_model, load_tokenizer, tokens_of, trainable
from vpretrain.language.task import construction as constructions
from vpretrain.language.task.construction import OneHot, TaskParts
from vpretrain.language.task.designer import TopKDesigner
from vpretrain.language.task.values import candidate_values
from vpretrain.language.verified import VerifiedFeedback, check_answers
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Feedback
from vpretrain.method.strength import Strength
from vpretrain.method.subset import alignment_subset, mlp_names
from vpretrain.method.untilted import untilted
from vpretrain.method.value import engine
from vpretrain.pretrained import copy_processor
from vpretrain.run.checkpoint import load_designer
from vpretrain.run.left_out import LeftOut, by_source
from vpretrain.run.parts import Parts
from vpretrain.run.prefetch import prefetched
from vpretrain.types import Json, Keywords, Model

_ONE_HOT_ALPHA = 0.01  # a mean alpha below this leaves the targets one-hot for all practical purposes


def assemble(recipe: Recipe, model: Model = None) -> Parts:
    """Build the parts of a run; `model` replaces the learner that the recipe names (`check` passes a tiny copy of it).

    Raises UserError if something in the recipe cannot work; the message gives the cause and the remedy.
    """
    available(recipe.learner.device)  # refused before anything is loaded
    tokenizer = load_tokenizer(recipe.learner.name)
    check_candidates(recipe.designer, tokens_of(tokenizer))
    where: Keywords = {"rank": distributed.rank(), "processes": distributed.size()}
    rows: Keywords = {"packing": recipe.stream.packing, "average": recipe.stream.average}
    feedback = LanguageFeedback(recipe.feedback, tokenizer, seed=recipe.seed, **rows, **where)
    if recipe.feedback.reward == "answer":
        check_answers(feedback)
    evaluation = load_evaluation(recipe, tokenizer)
    evaluation_keys = frozenset(example.key for example in evaluation.problems)
    check_roles(feedback.keys, evaluation_keys)
    held_back = feedback.keys | evaluation_keys
    arm = recipe.arms[recipe.arm]
    mixed_in = _mixed_in(recipe) if arm.mixed_in else ()
    stream = LanguageStream(recipe.stream, tokenizer, seed=recipe.seed, held_back=held_back, mixed_in=mixed_in, **where)

    if stream.has_chats:
        has_markers(tokenizer)  # refuses a learner without a template

    if model is None:
        check_sizes(recipe, load_config(recipe.learner.name))
    learner, export = load_learner(recipe, model)
    feedback.device = learner.device
    steering: LanguageFeedback | VerifiedFeedback = feedback
    if recipe.feedback.reward == "answer":
        steering = VerifiedFeedback(feedback, learner, tokenizer, recipe.evaluation, seed=recipe.seed)

    value = recipe.effective_value
    length = max(recipe.stream.length, value.length)
    construction, meta, designer = constructed(
        arm, learner, steering, recipe.designer, value, recipe.control, length=length, seed=recipe.seed
    )
    train = None
    if arm.direct:
        if distributed.size() > 1:
            raise UserError(f"arm={recipe.arm} trains in one process: start it without torchrun")
        from vpretrain.language.direct import DirectTraining  # its package is an extra

        kept_out = evaluation_keys if arm.direct_on == "feedback" else held_back
        train = DirectTraining(recipe, learner, tokenizer, kept_out)

    def left_out(cursor: Json) -> LeftOut:
        roles = {"feedback": steering.left_out, "evaluation": evaluation.left_out}
        if train is None:
            roles["stream"] = stream.left_out(cursor)
        elif arm.direct_on == "stream":  # which it draws from by itself
            roles["stream"] = train.mixture.left_out()
        return by_source((f"{role} {origin}", counts) for role, of in roles.items() for origin, counts in of.items())

    return Parts(
        learner=learner,
        stream=prefetched(stream, recipe.stream.prefetch, learner.device),
        feedback=steering,
        held_back=held_back,
        construction=construction,
        base=OneHot(),
        meta=meta,
        designer=designer,
        evaluate=partial(evaluation, learner),
        export=export,
        warning=partial(_untilted, recipe) if arm.steered and not arm.random_feedback else lambda result: None,
        train=train,
        left_out=left_out,
        skipped=lambda cursor: stream.skipped(cursor) if train is None else train.mixture.skipped(),
    )


def load_learner(recipe: Recipe, model: Model = None) -> tuple[LanguageLearner, Callable[[Path], None]]:
    """Load the learner; also return a function that writes it into a directory, see `export_model`. Raises UserError."""
    model = load_model(recipe.learner) if model is None else model
    tokenizer = load_tokenizer(recipe.learner.name)
    learner = LanguageLearner(
        model,
        top_k=recipe.candidates,
        tokens=tokens_of(tokenizer),
        bf16=recipe.learner.precision == "bf16",
        compiled=recipe.learner.compile,
        parallel=recipe.parallel,
    )
    if recipe.stream.packing and not learner.keeps_documents_apart():
        raise UserError(
            f"{recipe.learner.name} carries what it read into the next document of its row: set stream.packing=false"
        )
    return learner, partial(export_model, model, tokenizer, recipe.learner.name)


def new_model(recipe: Recipe, config: PretrainedConfig) -> Model:
    """Build a model of the learner's architecture, with new weights, as the recipe trains it."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=pretrained.trusted)
    return trainable(model, recipe.learner.lora)


def subset_of(recipe: Recipe, learner: LanguageLearner) -> tuple[str, ...]:
    """Names of the parameters in S. Raises UserError."""
    return alignment_subset(learner.module, recipe.effective_value.subset)


def evaluation_of(recipe: Recipe, model: str) -> Callable[[], Json]:
    """Load a model, by name or directory, and a recipe's evaluation; return a function that evaluates it. Raises UserError."""
    learner_config = recipe.learner.model_copy(update={"name": model, "lora": None})
    evaluation = load_evaluation(recipe, load_tokenizer(model))
    learner, _ = load_learner(recipe.model_copy(update={"learner": learner_config}))
    return partial(evaluation, learner)


def load_evaluation(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
    """Load the recipe's evaluation with its problems and its retention text. Raises UserError."""
    config = recipe.evaluation
    shape = {"length": config.length, "tokens": config.retention_tokens, "batch_size": config.batch_size}
    rows = [
        row for source in config.retention for row in rows_of(source, tokenizer, **shape, packing=recipe.stream.packing)
    ]
    asked, left_out = problems(config.sources, config.problems)
    return Evaluation(config, asked, rows, tokenizer, left_out)


def check_sizes(recipe: Recipe, config: PretrainedConfig) -> None:
    """Check lengths against the learner's context, and the rows of `selection`. Raises UserError."""
    context = context_of(config)
    for section in ("stream", "feedback", "evaluation"):
        length = getattr(recipe, section).length
        if context is not None and length > context:
            raise UserError(
                f"{section}.length={length} is longer than the learner's context of {context} tokens: use at most {context}"
            )
    rows, processes = recipe.stream.batch_size, distributed.size()
    if recipe.arm == "selection" and rows < 2 * processes:
        among = f" to {processes} processes" if processes > 1 else ""
        raise UserError(
            f"arm=selection chooses among the rows of a micro-batch: stream.batch_size={rows} leaves no choice{among}: use at "
            f"least {2 * processes}"
        )


def context_of(config: PretrainedConfig) -> int | None:
    """Return the number of tokens that a learner reads in one row; None if it has no such limit."""
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context


def check_candidates(designer: DesignerConfig, vocabulary: int) -> None:
    """Check K against the number of the learner's tokens. Raises UserError."""
    if designer.top_k > vocabulary:
        raise UserError(f"designer.top_k={designer.top_k} is above the vocabulary of {vocabulary}: use at most that")


def export_model(model: Model, tokenizer: PreTrainedTokenizerBase, name: str, directory: Path) -> None:
    """Write a directory for `AutoModelForCausalLM.from_pretrained`; under LoRA the merged model, and the adapter beside it.

    The tokenizer goes with it, and so do the files of a processor, which the learner called `name` may have.
    """
    if hasattr(model, "get_base_model"):
        # The weights below the adapters are the base learner's, also of embeddings.
        model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        tokenizer.save_pretrained(directory / "adapter")
        _merged(model).save_pretrained(directory)
    else:
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    copy_processor(name, PACKAGES, directory)


def _merged(model: Model) -> Model:
    """A copy of a PEFT model with its adapters in its weights; a head that differs from its embedding then is untied."""
    copied = copy.deepcopy(model)
    causal = copied.get_base_model()
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    if embedding.weight is head.weight and any(hasattr(layer, "base_layer") for layer in (embedding, head)):
        layer = getattr(head, "base_layer", head)
        layer.weight = torch.nn.Parameter(head.weight.detach().clone())
        for config in (causal.config, causal.config.get_text_config()):
            config.tie_word_embeddings = False
    return copied.merge_and_unload()


def new_designer(config: DesignerConfig, learner: LanguageLearner, *, length: int, seed: int) -> TopKDesigner:
    """Create a designer for rows of `length` tokens; `warm_start` continues an earlier run's. Raises UserError.

    It draws separate random numbers, so that the learner's dropout is the same in every arm.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        designer = TopKDesigner(config, learner.model.get_output_embeddings().weight, length)
    if config.warm_start is not None:
        load_designer(designer, config.warm_start)
    return designer.to(learner.device)


def constructed(
    arm: Arm,
    learner: LanguageLearner,
    feedback: Feedback,
    designer: DesignerConfig,
    value: ValueConfig,
    control: ControlConfig,
    *,
    length: int,
    seed: int,
) -> tuple[OneHot, MetaUpdate | None, TopKDesigner | None]:
    """Build an arm's construction, its meta update if it uses feedback, and its designer if it has one.

    Args:
        length: maximum number of tokens per row for the designer.
        seed: of the initial designer, and of the noise in place of g_down.

    Raises:
        UserError: S selects nothing, or under fsdp the learner has no last MLP for the tangent that the arm needs.
    """
    strength = Strength.of(value) if arm.exact else None
    phi = new_designer(designer, learner, length=length, seed=seed) if arm.designer else None

    def values(batch: TokenBatch, state: LanguageState) -> Tensor | None:
        return candidate_values(learner, batch, state, None if meta is None else meta.direction)

    def true_values(batch: TokenBatch) -> Tensor | None:
        if meta is None or meta.direction is None:
            return None
        values_NK = values(batch, learner.observe(batch))
        return None if values_NK is None else values_NK[:, 0]

    parts = TaskParts(value, control, strength, phi, values, true_values)
    construction: OneHot = getattr(constructions, arm.construction).of(parts, **(arm.options or {}))
    meta: MetaUpdate | None = None
    if not (arm.steered or arm.tangent):
        return construction, None, None
    learner.keep_candidates_when(construction.asks_for_candidates)
    learner.shared_pass.taken = construction.keeps_batches
    tilts = alignment_subset(learner.module, value.subset)
    if not learner.keep_entries(tilts):
        if not learner.has_own_gradient and arm.tangent:
            raise UserError(
                f"arm={arm.name} needs the tangent of the last MLP under fsdp, and this learner has none that vpretrain "
                "knows: set parallel=ddp"
            )
        if value.subset == "last-mlp":
            where = (
                "through the model's own last block" if mlp_names(learner.module) else "of the last block: S is that"
            )
            note(f"value.subset=last-mlp: no last MLP can be taken apart here; tangents are {where}, which costs more")
    # A designer on top of the exact task learns from a wider S than the tilt comes from.
    wider = alignment_subset(learner.module, designer.subset) if arm.exact and arm.designer else ()
    meta = MetaUpdate(
        learner=learner,
        construction=construction,
        feedback=feedback,
        subset=list(dict.fromkeys([*wider, *tilts])),
        tilts=tilts,
        engine=engine(value),
        kind=value.align,
        penalty=value.penalty,
        feedback_every=value.feedback_every,
        part={"rows": distributed.portion("value.batch_size", value.batch_size), "length": value.length},
        matched=value.domains == "matched",
        lr=designer.lr,
        clip_norm=designer.clip_norm,
        strength=strength,
        random_seed=seed if arm.random_feedback else None,
    )
    return construction, meta, phi


def _mixed_in(recipe: Recipe) -> list[SourceConfig]:
    """The feedback's sources, weighted so that together they are a fraction `control.mixed_in` of the stream's rows.

    They hold no problem of the evaluation: `check_roles` has run before.
    """
    fraction, sources = recipe.control.mixed_in, recipe.feedback.sources
    weight = fraction / (1 - fraction) * sum(source.weight for source in recipe.stream.sources)
    total = sum(source.weight for source in sources)
    return [source.model_copy(update={"weight": weight * source.weight / total}) for source in sources]


def _untilted(recipe: Recipe, result: Json) -> str | None:
    if result["mean_alpha"] >= _ONE_HOT_ALPHA:
        return None
    return untilted(recipe, result, mean="mean_alpha", stayed="one-hot", shorter="stream.batch_size or stream.length")
