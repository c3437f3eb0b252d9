"""From a recipe to the parts of a language run. Whatever can be wrong is found here, before any training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vpretrain import world
from vpretrain.errors import UserError
from vpretrain.language.batch import TokenBatch
from vpretrain.language.config import DIRECT, DesignerConfig, Recipe, SourceConfig, ValueConfig
from vpretrain.language.construction import ClosedFormTilt, LearnedTargets, OneHot, Selection, Smoothing, TokenWeights
from vpretrain.language.designer import TopKDesigner
from vpretrain.language.evaluate import Evaluation
from vpretrain.language.feedback import LanguageFeedback, check_roles, problems
from vpretrain.language.learner import LanguageLearner
from vpretrain.language.load import load_config, load_model, load_tokenizer
from vpretrain.language.stream import LanguageStream, general_batches, rows_of
from vpretrain.meta import MetaUpdate
from vpretrain.parts import Parts
from vpretrain.prefetch import prefetched
from vpretrain.run.checkpoint import load_designer
from vpretrain.subset import alignment_subset
from vpretrain.task import Construction, Feedback
from vpretrain.value import engine

_ONE_HOT_ALPHA = 0.01  # a mean alpha below this leaves the targets one-hot for all practical purposes


def assemble(recipe: Recipe, model: Any = None) -> Parts:
    """Learner, stream, feedback, construction and evaluation of a recipe.

    Args:
        recipe: the run.
        model: takes the place of the learner that the recipe names (a tiny copy of it, in `check`).

    Raises:
        UserError: something in the recipe cannot work; the message says what and how to mend it.
    """
    tokenizer = load_tokenizer(recipe.learner.name)
    where = {"rank": world.rank(), "processes": world.size()}
    packing = recipe.stream.packing
    feedback = LanguageFeedback(recipe.feedback, tokenizer, seed=recipe.seed, packing=packing, **where)
    evaluation = load_evaluation(recipe, tokenizer)
    evaluation_keys = frozenset(example.key for example in evaluation.problems)
    check_roles(feedback.keys, evaluation_keys)
    held_back = feedback.keys | evaluation_keys
    mixed_in = _mixed_in(recipe) if recipe.arm == "mixed-in" else ()
    stream = LanguageStream(recipe.stream, tokenizer, seed=recipe.seed, held_back=held_back, mixed_in=mixed_in, **where)

    if model is None:
        check_sizes(recipe, load_config(recipe.learner.name))
    learner, export = load_learner(recipe, model)
    feedback.device = learner.device

    general = None
    if recipe.guard is not None:
        own = held_back | {key for batch in evaluation.retention for row in batch.keys for key in row}
        how: dict[str, Any] = {"seed": recipe.seed, "held_back": own, "packing": packing, **where}
        general = general_batches(recipe.guard, tokenizer, device=learner.device, **how)
    construction, meta, designer = _construction(recipe, learner, feedback, general)
    train = None
    if recipe.arm in DIRECT:
        if world.size() > 1:
            raise UserError(f"arm={recipe.arm} trains in one process: start it without torchrun")
        from vpretrain.language.direct import DirectTraining  # its package is an extra

        kept_out = evaluation_keys if recipe.arm.endswith("-feedback") else held_back
        train = DirectTraining(recipe, learner, tokenizer, kept_out)
    return Parts(
        learner=learner,
        stream=prefetched(stream, recipe.stream.prefetch, learner.device),
        feedback=feedback,
        held_back=held_back,
        construction=construction,
        base=OneHot(),
        meta=meta,
        designer=designer,
        evaluate=partial(evaluation, learner),
        export=export,
        warning=_idle if designer is not None else lambda result: None,
        train=train,
    )


def load_learner(recipe: Recipe, model: Any = None) -> tuple[LanguageLearner, Callable[[Path], None]]:
    """The learner, and what writes it into a directory in its community's format. Raises UserError."""
    model = load_model(recipe.learner) if model is None else model
    bf16, compiled = recipe.learner.precision == "bf16", recipe.learner.compile
    k, tail = recipe.candidates
    learner = LanguageLearner(model, top_k=k, tail=tail, bf16=bf16, compiled=compiled, parallel=recipe.parallel)
    if recipe.stream.packing and not learner.keeps_documents_apart():
        raise UserError(
            f"{recipe.learner.name} carries what it read into the next document of its row: set stream.packing=false"
        )
    return learner, partial(export_model, model, load_tokenizer(recipe.learner.name))


def subset_of(recipe: Recipe, learner: LanguageLearner) -> tuple[str, ...]:
    """Names of the parameters in S. Raises UserError."""
    return alignment_subset(learner.module, recipe.value.subset)


def measure(recipe: Recipe, model: str) -> dict[str, Any]:
    """The figures of a model by name or directory on a recipe's evaluation. Raises UserError."""
    learner_config = recipe.learner.model_copy(update={"name": model, "lora": None})
    evaluation = load_evaluation(recipe, load_tokenizer(model))
    return evaluation(load_learner(recipe.model_copy(update={"learner": learner_config}))[0])


def load_evaluation(recipe: Recipe, tokenizer: Any) -> Evaluation:
    """The recipe's evaluation with its problems and its retention text. Raises UserError."""
    config = recipe.evaluation
    shape = {"length": config.length, "tokens": config.retention_tokens, "batch_size": config.batch_size}
    rows = [
        row for source in config.retention for row in rows_of(source, tokenizer, **shape, packing=recipe.stream.packing)
    ]
    return Evaluation(config, problems(config.sources, config.problems), rows, tokenizer)


def check_sizes(recipe: Recipe, config: Any) -> None:
    """Lengths against the learner's context, K against its vocabulary. Raises UserError."""
    config = config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    lengths = {
        "stream.length": recipe.stream.length,
        "feedback.length": recipe.feedback.length,
        "evaluation.length": recipe.evaluation.length,
    } | ({"guard.length": recipe.guard.length} if recipe.guard else {})
    for field, length in lengths.items():
        if context is not None and length > context:
            raise UserError(
                f"{field}={length} is longer than the learner's context of {context} tokens: use at most {context}"
            )
    check_candidates(recipe.designer, config.vocab_size)
    if recipe.arm == "selection" and recipe.stream.batch_size == 1:
        raise UserError("arm=selection chooses among the rows of a micro-batch: stream.batch_size=1 leaves no choice")


def check_candidates(designer: DesignerConfig, vocabulary: int) -> None:
    """K against the size of the learner's vocabulary. Raises UserError."""
    if designer.top_k > vocabulary:
        raise UserError(f"designer.top_k={designer.top_k} is above the vocabulary of {vocabulary}: use at most that")


def export_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained` loads; under LoRA the merged model, and the adapter beside it."""
    if hasattr(model, "get_base_model"):
        model.save_pretrained(directory / "adapter")
        tokenizer.save_pretrained(directory / "adapter")
        copy.deepcopy(model).merge_and_unload().save_pretrained(directory)
    else:
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def new_designer(config: DesignerConfig, learner: LanguageLearner, *, length: int, seed: int) -> TopKDesigner:
    """A new designer for rows of so many tokens, or one that starts where an earlier run's ended. Raises UserError.

    Its random numbers are its own, so that the learner's dropout is the same in every arm.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        designer = TopKDesigner(config, learner.model.get_output_embeddings().weight, length)
    if config.warm_start is not None:
        load_designer(designer, config.warm_start)
    return designer.to(learner.device)


def meta_update(
    learner: LanguageLearner,
    construction: Construction,
    feedback: Feedback,
    designer: DesignerConfig,
    value: ValueConfig,
    *,
    general: Callable[[int], TokenBatch] | None = None,
    random_seed: int | None = None,
) -> MetaUpdate:
    """The meta update that these settings describe; see `MetaUpdate`. Raises UserError if S selects nothing."""
    return MetaUpdate(
        learner=learner,
        construction=construction,
        feedback=feedback,
        subset=alignment_subset(learner.module, value.subset),
        engine=engine(value),
        kind=value.align,
        penalty=value.penalty,
        steps=designer.steps_per_update,
        average=value.average,
        feedback_every=value.feedback_every,
        general=general,
        part={"rows": world.portion("value.batch_size", value.batch_size), "length": value.length},
        matched=value.domains == "matched",
        lr=designer.lr,
        clip_norm=designer.clip_norm,
        random_seed=random_seed,
    )


def _construction(
    recipe: Recipe,
    learner: LanguageLearner,
    feedback: LanguageFeedback,
    general: Callable[[int], TokenBatch] | None,
) -> tuple[Construction, MetaUpdate | None, TopKDesigner | None]:
    alpha, value = recipe.control.alpha, recipe.effective_value
    designer: TopKDesigner | None = None
    construction: Construction
    match recipe.arm:
        case "one-hot" | "mixed-in" | "sft" | "grpo" | "sft-feedback" | "grpo-feedback":
            return OneHot(), None, None
        case "uniform":
            return Smoothing(alpha, "uniform"), None, None
        case "self-distillation":
            return Smoothing(alpha, "self"), None, None
        case "closed-form":
            construction = ClosedFormTilt(alpha, recipe.control.temperature, lambda batch: meta.along(batch))
        case "selection":
            construction = Selection(recipe.control.keep, lambda batch: meta.along(batch))
        case "token-weights":
            construction = TokenWeights(lambda batch: meta.along(batch))
        case "v" | "v-dot" | "v-cosine" | "v-adamw" | "random-feedback":
            length = max(recipe.stream.length, recipe.value.length)
            designer = new_designer(recipe.designer, learner, length=length, seed=recipe.seed)
            construction = LearnedTargets(designer, recipe.designer.tether)
    meta = meta_update(
        learner,
        construction,
        feedback,
        recipe.designer,
        value,
        general=general,
        random_seed=recipe.seed if recipe.arm == "random-feedback" else None,
    )
    return construction, meta, designer


def _mixed_in(recipe: Recipe) -> list[SourceConfig]:
    """The feedback's sources with weights that give them, together, a share `control.mixed_in` of the stream's rows.

    `check_roles` has seen to it that they hold no problem of the evaluation.
    """
    share, sources = recipe.control.mixed_in, recipe.feedback.sources
    weight = share / (1 - share) * sum(source.weight for source in recipe.stream.sources)
    total = sum(source.weight for source in sources)
    return [source.model_copy(update={"weight": weight * source.weight / total}) for source in sources]


def _idle(result: dict[str, Any]) -> str | None:
    if result["mean_alpha"] >= _ONE_HOT_ALPHA:
        return None
    return (
        f"the targets stayed one-hot (mean alpha {result['mean_alpha']:.4f} after {result['meta_updates']} meta "
        "updates): raise designer.alpha_start or designer.lr, or lower value.every_steps"
    )
