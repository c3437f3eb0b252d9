"""The common part of all recipes: strict models, and the sections that do not depend on language or vision.

Unknown keys fail. Names contain units. A modality's own sections, and its Recipe, are in its `config.py`. Neither file imports
torch or transformers, so that `--help` and recipe errors appear at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vpretrain.arms import Arm
from vpretrain.bounds import MANY, MOST_ROWS, Device, Fraction, Location, Minutes, Norm, Rate, Seed, Subset
from vpretrain.errors import UserError
from vpretrain.plain import texts

_SURROGATE = re.compile("[\ud800-\udfff]")
Decay = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """A section of a recipe: no unknown keys, no NaN or infinite numbers, no text that systems or tokenizers refuse."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _of_characters(cls, value: object) -> object:
        for text in texts(value):
            if "\0" in text:
                raise UserError("it contains a NUL character: remove it")
            if _SURROGATE.search(text):  # from a command line that is no UTF-8, or an escape in YAML
                raise UserError("it contains what is no character of UTF-8 (such as \\ud800): remove it")
        return value


class OptimizerConfig(Strict):
    """AdamW for the learner, with the paper's warm-up and clipping."""

    lr: Rate = Field(1.5e-5, description="Peak learning rate of the learner.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Decay rates of AdamW's two moments.")
    eps: float = Field(1e-8, ge=1e-20, le=1, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, le=100, description="Decoupled weight decay.")
    clip_norm: Norm = Field(1.0, description="The gradient is scaled down to at most this norm.")
    skip_above: float | None = Field(
        None,
        gt=1,
        le=1_000_000,
        description="Skip steps whose loss exceeds this multiple of the running median; null: skip none. Not in grpo.",
    )
    warmup_fraction: Fraction = Field(
        0.03, description="Fraction of the budget over which the learning rate rises linearly."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning rate after warm-up, over the budget; linear and cosine fall to a tenth of the peak.",
    )


class LearnerConfig(Strict):
    """The foundation model that continues its pretraining."""

    name: Location
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast with fp32 master weights. Slow on CPUs without bf16 instructions."
    )
    device: Device = Field("auto", description="auto (cuda if there is one), cpu, cuda, cuda:1, mps ...")


class FeedbackConfig(Strict):
    """The feedback set; each modality defines its content."""


class StreamConfig(Strict):
    """The batches of the unlabeled stream."""

    batch_size: int
    accumulation: int = Field(1, ge=1, le=100_000, description="Micro-batches per learner step.")
    prefetch: int = Field(
        0,
        ge=0,
        le=256,
        description="Learner steps for which another process makes batches ahead; 0: they are made in the loop. For GPUs.",
    )
    shards: int = Field(
        1,
        ge=1,
        le=MOST_ROWS,
        description="Independent parts in which the stream is read; a process reads those it needs. Set it to the number "
        "of processes when one reader cannot keep up.",
    )

    on_error: Literal["stop", "skip"] = Field(
        "skip",
        description="Rows and images that cannot be read: skip them, and name them in skipped.jsonl of the run's directory; "
        "or stop at the first. Feedback and evaluation always stop.",
    )
    max_skipped: Fraction = Field(
        0.01,
        description="The largest fraction of a source that is skipped: more stops the run. Of the first 1,000 rows or "
        "images it counts as a fraction of 1,000.",
    )

    @model_validator(mode="after")
    def _whole_shards(self) -> StreamConfig:
        if self.batch_size % self.shards:
            raise ValueError(f"shards={self.shards} does not divide batch_size={self.batch_size}: use a divisor of it")
        return self

    def rows_for(self, rank: int, processes: int) -> range:
        """Return the rows of a micro-batch that a process learns from. Raises UserError unless all have equally many."""
        below = self.batch_size - self.batch_size % processes
        if below != self.batch_size:
            fitting = f"{below} or {below + processes}" if below else f"{processes}"
            raise UserError(
                f"stream.batch_size={self.batch_size} is no multiple of the {processes} processes: use {fitting}"
            )
        return range(rank, self.batch_size, processes)


class DesignerConfig(Strict):
    """The training of a task designer; each modality defines its architecture."""

    lr: Rate = Field(1e-4, description="Learning rate of the designer's AdamW.")
    clip_norm: Norm = Field(1.0, description="The designer's gradient is scaled down to at most this norm.")
    warm_start: Location | None = Field(
        None, description="Directory of an earlier run: start with its trained designer instead of a new one."
    )
    burn_in_steps: int = Field(
        0, ge=0, le=MANY, description="Learner steps on the base task before the designer starts (App C.6)."
    )


class ValueConfig(Strict):
    """V = Align(g_down, g_pre) over the alignment subset S, and the meta update that raises it."""

    every_steps: int = Field(
        4,
        ge=1,
        le=MANY,
        description="r: one meta update every r learner steps. A direction is used up as it is followed: use few "
        "pairs often rather than many pairs rarely.",
    )
    align: Literal["dot", "cosine"] = Field(
        "cosine", description="Inner product of the gradients, or its cosine (Eq 42)."
    )
    metric: Literal["identity", "adamw"] = Field(
        "identity", description="adamw: the inner product is preconditioned like the learner's own step (App B.4)."
    )
    penalty: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="dot: c of Prop 2.1's norm penalty: a longer g_pre raises V only where its cosine is above c; 0: none.",
    )
    feedback_every: int = Field(
        1,
        ge=1,
        le=MANY,
        description="Meta updates per feedback batch: g_down is the more expensive half of an update. (Vision's heads are "
        "fitted once per batch.)",
    )
    engine: Literal["jvp", "finite_difference", "double_backward"] = Field(
        "jvp", description="How the designer's gradient is computed; `vpretrain doctor` compares them."
    )
    relative_step: float = Field(
        1e-5, ge=1e-10, le=1, description="finite_difference: step size |h u| relative to |theta_S|."
    )
    subset: Subset = Field(
        "last-2",
        description="S: last-N (blocks, or their adapters under LoRA), all, or name:REGEX over parameter names.",
    )
    strength: Fraction | Literal["auto"] = Field(
        "auto",
        description="Share of the tilted task in the targets, the rest is the base task; in vision the fraction of the way "
        "that features or targets move. auto: judged on feedback pairs that did not give the direction; 0 if they do not "
        "agree with it, or if the tilt does harm.",
    )
    divergence: float = Field(
        0.15,
        ge=1e-6,
        le=100,
        description="Trust region: mean divergence of the targets from those before the tilt, in nats; in language KL per "
        "target, from which lambda follows, in vision per patch (dino) or per element of a target (ijepa). With strength "
        "auto it grows up to fourfold where feedback pairs agree that the whole tilt helps.",
    )

    @model_validator(mode="after")
    def _penalised_dot(self) -> ValueConfig:
        if self.penalty and self.align != "dot":
            raise ValueError("penalty belongs to align=dot: a cosine does not grow with the gradients; set penalty=0")
        return self


class BudgetConfig(Strict):
    """The limits of the run; the first one reached ends it. Evaluation, saving and loading are not charged."""

    minutes: Minutes | None = Field(None, description="Training time, meta updates included.")
    steps: int | None = Field(None, ge=0, le=MANY, description="Learner steps.")

    @model_validator(mode="after")
    def _some(self) -> BudgetConfig:
        if self.minutes is None and self.steps is None:
            raise ValueError("give budget.minutes or budget.steps")
        return self

    def reached(self, steps_done: int, seconds: float, fraction: float = 1.0) -> bool:
        """Whether this fraction of it is spent; in minutes, by the step that ends nearest to it."""
        if self.steps is not None and steps_done >= fraction * self.steps:
            return True
        return self.minutes is not None and seconds + 0.5 * seconds / max(1, steps_done) >= fraction * 60 * self.minutes

    def fraction(self, steps_done: int, seconds: float) -> float:
        """Return the fraction of it that is spent after these steps and training seconds."""
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        by_steps = 0.0 if self.steps is None else (steps_done / self.steps if self.steps else 1.0)
        return min(1.0, max(by_time, by_steps))

    def seconds_left(self, steps_done: int, seconds: float) -> float:
        """Estimate the training seconds left, at the pace so far."""
        by_time = math.inf if self.minutes is None else 60 * self.minutes - seconds
        by_steps = math.inf if self.steps is None else (self.steps - steps_done) * seconds / max(1, steps_done)
        return max(0.0, min(by_time, by_steps))


class EvaluationConfig(Strict):
    """The evaluation; each modality defines its data."""

    points: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Equal parts of the budget after each of which the run is evaluated, for curves; this is not charged to "
        "the budget. The evaluation after the last part is the result's, so 1 adds none. null: compare takes 4, or 2 if the "
        "evaluation generates text or fits probes; other commands take none.",
    )

    @property
    def along(self) -> bool:
        """Whether there are evaluations before the end of the run."""
        return (self.points or 0) > 1

    @property
    def only_reads(self) -> bool:
        """Whether it takes forward passes over its data and nothing slower."""
        return False


class CheckpointConfig(Strict):
    """Checkpoints, from which an interrupted run resumes exactly."""

    every_minutes: Minutes | None = Field(10.0, description="Time between checkpoints; null: at interruption only.")
    every_steps: int | None = Field(None, ge=1, le=MANY, description="Learner steps between checkpoints.")
    keep: int = Field(2, ge=1, le=10_000, description="How many checkpoints are kept.")


class TrackingConfig(Strict):
    """Trackers for a run's metrics, besides metrics.jsonl and scores.jsonl, which are always written."""

    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        ["tensorboard"],
        description="Each needs the package of that name; []: none. wandb sends to its service unless WANDB_MODE=offline.",
    )
    project: str = Field(
        "vpretrain",
        min_length=1,
        max_length=255,
        description="The project of wandb and trackio, the experiment of mlflow.",
    )


class Recipe(Strict):
    """One run: a learner, its stream, the feedback that steers it, and a budget. Each modality extends it.

    Examples:
        >>> recipe = load_recipe("recipe.yaml")
        >>> recipe.arm
        'v'
        >>> recipe.model_copy(update={"arm": "one-hot"}).arm
        'one-hot'
    """

    arms: ClassVar[Mapping[str, Arm]]
    baseline: ClassVar[str]
    designed: ClassVar[str]  # the arm on whose designer `doctor` compares engines
    unit: ClassVar[str]  # what is counted for throughput
    memory_knobs: ClassVar[str]  # settings that reduce memory

    modality: str = Field(description="What the learner is trained on: language or vision.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=255,
        description="Name of the run and of its directory: letters, digits, '.', '_' and '-', a letter or digit first.",
    )
    arm: str = Field(description="v, or the control that takes its place.")
    seed: Seed = Field(0, description="Seed of stream order, initial designer and dropout.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null: torch's choice.")
    output: Location = Field("runs", description="Runs are written to OUTPUT/NAME.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Several processes (torchrun): each holds the whole learner (ddp), or a part of it (fsdp)."
    )
    learner: LearnerConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    stream: StreamConfig
    feedback: FeedbackConfig
    designer: DesignerConfig = DesignerConfig()
    value: ValueConfig = ValueConfig()
    budget: BudgetConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _shards(self) -> Recipe:
        if self.parallel == "fsdp" and self.has_designer and self.value.engine != "finite_difference":
            raise ValueError("parallel=fsdp shards what a tangent needs whole: set value.engine=finite_difference")
        return self

    @property
    def has_designer(self) -> bool:
        """Whether the arm trains a designer."""
        return self.arms[self.arm].designer

    @property
    def own_value(self) -> Mapping[str, object]:
        """The arm's own settings, which replace those of the value section."""
        return self.arms[self.arm].value

    @property
    def effective_value(self) -> ValueConfig:
        """The value section with the arm's own settings."""
        return self.value.model_copy(update=dict(self.own_value))

    @property
    def effective_optimizer(self) -> OptimizerConfig:
        """The optimizer section with the arm's changes."""
        return self.optimizer

    @property
    def directory(self) -> Path:
        """The directory that the run is written to."""
        return Path(self.output) / self.name
