"""Build the parts of a vision run from a recipe. Errors in the recipe are found here, before any training."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpretrain import distributed
from vpretrain.console import note, warn
from vpretrain.devices import available
from vpretrain.errors import UserError
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Feedback
from vpretrain.method.strength import Strength
from vpretrain.method.subset import alignment_subset
from vpretrain.method.untilted import untilted
from vpretrain.method.value import engine, no_value
from vpretrain.plain import counted
from vpretrain.pretrained import copy_processor
from vpretrain.run.checkpoint import load_designer
from vpretrain.run.parts import Parts
from vpretrain.run.prefetch import prefetched
from vpretrain.types import Json, Model
from vpretrain.vision.arms import Arm
from vpretrain.vision.config import DesignerConfig, LearnerConfig, Recipe, ValueConfig
from vpretrain.vision.data.feedback import VisionFeedback
from vpretrain.vision.data.source import check_disjoint
from vpretrain.vision.data.stream import VisionStream
from vpretrain.vision.evaluation.evaluate import Evaluation
from vpretrain.vision.installed import check_installed
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.ijepa import IJepaLearner
from vpretrain.vision.model.learner import VisionLearner
from vpretrain.vision.model.load import PACKAGES, load_backbone
from vpretrain.vision.task import construction as constructions
from vpretrain.vision.task.construction import Fixed, TaskParts
from vpretrain.vision.task.designer import make_designer
from vpretrain.vision.task.sheet import draw_sheet
from vpretrain.vision.task.views import record_views
from vpretrain.vision.warm_up import warm_up


def assemble(recipe: Recipe, model: Model = None) -> Parts:
    """Build the parts of a run; `model` replaces the learner that the recipe names (in `check`, by a tiny copy of it).

    Raises UserError if something in the recipe cannot work; the message gives the problem and the remedy.
    """
    check_installed()
    check_disjoint(recipe.roles)
    learner, export = load_learner(recipe, model)
    check_sizes(recipe, learner.backbone.patch_size)
    evaluation = Evaluation(recipe.evaluation)
    own = VisionStream(recipe.stream, seed=recipe.seed, rank=distributed.rank(), processes=distributed.size())
    stream = prefetched(own, recipe.stream.prefetch, learner.device)
    feedback = VisionFeedback(recipe.feedback, learner, seed=recipe.seed)
    arm, look = recipe.arms[recipe.arm], None
    construction, meta, designer = constructed(
        arm, learner, feedback, recipe.designer, recipe.effective_value, seed=recipe.seed
    )
    warn_if_judged_by_the_same(feedback, meta)
    if designer is not None and meta is not None:
        look = partial(record_views, learner, construction, meta, own)
    return Parts(
        learner=learner,
        stream=stream,
        feedback=feedback,
        held_back=frozenset(),
        construction=construction,
        base=Fixed(),
        meta=meta,
        designer=designer,
        evaluate=partial(evaluation, learner),
        warning=partial(_untilted, recipe) if arm.exact and not arm.random_feedback else lambda result: None,
        export=export,
        warm_up=partial(_before_first_step, recipe, learner, feedback if meta is not None else None),
        look=look,
        illustrate=lambda directory: draw_sheet(construction, stream.next()[0], directory / "views.png"),
        left_out=lambda cursor: {f"stream {origin}": of for origin, of in own.left_out(cursor).items()},
        skipped=own.skipped,
        modules={"teacher": learner.teacher, "heads": feedback.heads},
        optimizers={"heads": feedback.optimizer},
    )


def _before_first_step(recipe: Recipe, learner: VisionLearner, feedback: VisionFeedback | None) -> None:
    if feedback is not None:
        distributed.on_all_ranks(feedback.read_files)
    warm_up(recipe, learner)


def _untilted(recipe: Recipe, result: Json) -> str | None:
    if result["mean_tilt"] > 0:
        return None
    return untilted(recipe, result, mean="mean_tilt", stayed="fixed", shorter="stream.batch_size")


def constructed(
    arm: Arm,
    learner: VisionLearner,
    feedback: Feedback,
    designer: DesignerConfig,
    value: ValueConfig,
    *,
    seed: int,
) -> tuple[Fixed, MetaUpdate | None, nn.Module | None]:
    """Build an arm's construction, its meta update if it uses feedback, and its designer if it has one.

    `seed` is of the initial designer, and of the noise in place of g_down. Raises UserError.
    """
    phi: nn.Module | None = None
    meta: MetaUpdate | None = None
    if arm.designer:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            phi = make_designer(designer)
        if designer.warm_start is not None:
            load_designer(phi, designer.warm_start)
        phi.to(learner.device)
    strength = Strength.of(value) if arm.exact else None
    parts = TaskParts(learner, value, designer, strength, phi, lambda: None if meta is None else meta.direction)
    construction: Fixed = getattr(constructions, arm.construction).of(parts)
    if arm.steered:
        subset = _subset(value.subset, learner)
        if arm.exact:
            _keep_entries(learner, value, subset)
        meta = MetaUpdate(
            learner=learner,
            construction=construction,
            feedback=feedback,
            subset=subset,
            engine=no_value if arm.without_value else engine(value),
            kind=value.align,
            penalty=value.penalty,
            feedback_every=value.feedback_every,
            part={"rows": distributed.portion("value.batch_size", value.batch_size)},
            matched=False,
            lr=designer.lr,
            clip_norm=designer.clip_norm,
            strength=strength,
            random_seed=seed if arm.random_feedback else None,
        )
    return construction, meta, phi


def warn_if_judged_by_the_same(feedback: VisionFeedback, meta: MetaUpdate | None) -> None:
    """Warn if each batch of feedback holds images of the one before, so that those that judge a direction have given it."""
    images, size = feedback.meta_images, feedback.config.batch_size
    if meta is None or meta.strength is None or meta.strength.fixed or images >= 2 * size:
        return
    smaller = f"set feedback.batch_size={images // 2}, or " if images >= 4 else ""  # a batch has two images at least
    warn(
        f"warning: feedback.meta has {counted(images, 'image')}, so that those that judge the strength gave the direction, "
        f"too: {smaller}give more images"
    )


def load_learner(recipe: Recipe, model: Model = None) -> tuple[VisionLearner, Callable[[Path], None]]:
    """Load the learner; also return a function that saves its backbone for `AutoModel.from_pretrained`, with its processor.

    Raises UserError.
    """
    device = available(recipe.learner.device)
    model = load_backbone(recipe.learner.name) if model is None else model
    backbone = Backbone(model).to(device).train()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        bf16 = recipe.learner.precision == "bf16"
        learner = new_learner(recipe.learner, backbone, bf16=bf16, parallel=recipe.parallel)
    return learner, partial(_export, model, recipe.learner.name)


def new_learner(config: LearnerConfig, backbone: Backbone, **kwargs: Any) -> VisionLearner:
    """Build the learner of a recipe's objective, with a new head; `kwargs` are those of `VisionLearner`. Raises UserError."""
    if config.objective == "ijepa":
        return IJepaLearner(backbone, config.ijepa, **kwargs)
    return DinoLearner(backbone, config.dino, **kwargs)


def _export(model: Model, name: str, directory: Path) -> None:
    model.save_pretrained(directory)
    copy_processor(name, PACKAGES, directory)


def subset_of(recipe: Recipe, learner: VisionLearner) -> tuple[str, ...]:
    """Return the names of the parameters in S; the last blocks include the final norm. Raises UserError."""
    return _subset(recipe.effective_value.subset, learner)


def _subset(spec: str, learner: VisionLearner) -> tuple[str, ...]:
    subset = alignment_subset(learner.module, spec)
    if re.fullmatch(r"last-\d+", spec):
        norm = {id(p) for p in learner.backbone.norm.parameters()}
        subset += tuple(name for name, p in learner.named_parameters() if id(p) in norm)
    return subset


def _keep_entries(learner: VisionLearner, value: ValueConfig, subset: tuple[str, ...]) -> None:
    """Let tangents start from the learner's own pass where S allows it. Raises UserError where they would need shards."""
    fits = learner.keep_entries(subset)
    if not learner.has_own_gradient and not (fits and isinstance(learner, DinoLearner)):
        raise UserError("under fsdp this arm needs objective=dino and subset=last-mlp: set parallel=ddp, or those")
    if not fits and value.subset == "last-mlp":
        note("value.subset=last-mlp: no last MLP can be taken apart here; tangents cost more")


def evaluation_of(recipe: Recipe, model: str) -> Callable[[], Json]:
    """Load a model, by name or directory, and a recipe's evaluation; return a function that evaluates it. Raises UserError."""
    check_installed()
    learner_config = recipe.learner.model_copy(update={"name": model})
    learner, _ = load_learner(recipe.model_copy(update={"learner": learner_config}))
    check_sizes(recipe, learner.backbone.patch_size)
    return partial(Evaluation(recipe.evaluation), learner)


def check_sizes(recipe: Recipe, patch: int) -> None:
    """Raise UserError for sizes that are not multiples of the patch, and for views that the objective cannot use."""
    stream = recipe.stream
    if recipe.learner.objective == "dino" and stream.global_views < 2:
        raise UserError("DINO matches different global views: set stream.global_views=2")
    if recipe.learner.objective == "ijepa" and stream.local_views:
        raise UserError("I-JEPA has no local crops: set stream.local_views=0")
    sizes = [
        ("stream.global_size", stream.global_size),
        ("stream.local_size", stream.local_size),
        ("feedback.size", recipe.feedback.size),
        *(("evaluation.size", side) for side in recipe.evaluation.shape),
        *(("evaluation.depth_size", side) for side in recipe.evaluation.depth_shape),
        *(("evaluation.classes.size", classes.size) for classes in [recipe.evaluation.classes] if classes is not None),
    ]
    for field, size in sizes:
        if size % patch:
            nearest = max(1, round(size / patch)) * patch
            raise UserError(f"{field}={size} is no multiple of the learner's patch of {patch} pixels: use {nearest}")
    crop, divisor = stream.global_size, recipe.designer.patch_size
    if recipe.designer.kind == "dit" and crop % divisor:
        raise UserError(f"designer.patch_size={divisor} does not divide stream.global_size={crop}: use a divisor of it")
