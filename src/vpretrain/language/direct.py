"""Direct training for comparison: supervised fine-tuning and GRPO, by TRL, on the stream's pairs or on the feedback's.

TRL's trainers have their own loop. A callback lets the run's budget drive it step by step, so that time, log, curves,
interruptions and checkpoints are handled as in every other arm.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from vpretrain.errors import NonFinite, UserError
from vpretrain.language.config import Recipe, SourceConfig
from vpretrain.language.data.encode import fitted
from vpretrain.language.data.example import Example, Scorer
from vpretrain.language.data.feedback import pairs
from vpretrain.language.data.mixture import Mixture
from vpretrain.language.data.source import with_form
from vpretrain.language.data.stream import HELD_BACK
from vpretrain.language.evaluation.solve import (
    before_stop,
    is_correct,
    math_verify,
    needs_mathematics,
    reference,
    states_answer,
)
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.method.algorithm import StepRecord
from vpretrain.run.optimizer import AdamW
from vpretrain.run.random_state import random_state, set_random_state
from vpretrain.types import Keywords, Model

try:
    import datasets
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
except ImportError:
    raise UserError('sft and grpo need a package: pip install "vpretrain[direct]"') from None

_ENDLESS = 10**9  # steps; the budget ends the run


class DirectTraining:
    """Training by TRL in place of Algorithm 1. The loss is averaged over tokens, regardless of `stream.average`.

    Problems whose keys are in `held_back` are not trained on.

    Attributes:
        mixture: the pairs, with what of them is not used.

    Raises:
        UserError: no source has pairs, GRPO could not recognise a correct answer, or the device is not the first one.
    """

    def __init__(
        self, recipe: Recipe, learner: LanguageLearner, tokenizer: PreTrainedTokenizerBase, held_back: frozenset[str]
    ) -> None:
        self.recipe, self.learner, self.tokenizer = recipe, learner, tokenizer
        arm = recipe.arms[recipe.arm]
        self.method, data = arm.direct, arm.direct_on
        section = recipe.feedback if data == "feedback" else recipe.stream
        self.length = section.length
        reading = recipe.stream.model_copy(update={"on_error": "stop"} if data == "feedback" else {})
        skips = reading.on_error == "skip"
        whole = [with_form(source, skips=skips) for source in section.sources]
        sources = [source for source in whole if source.prompt is not None or source.reasoning_gym is not None]
        if not sources:
            raise UserError(
                f"arm={recipe.arm} needs sources with prompt and response: the {data} has none, only raw text or chats"
            )
        if self.method == "grpo":
            for source in sources:
                _check_answers(source, skips=skips)
        if learner.device.index:
            raise UserError(
                f"arm={recipe.arm} runs on the first device only: make {learner.device} the first (CUDA_VISIBLE_DEVICES)"
            )
        why = partial(unused, tokenizer=tokenizer, length=self.length, held_back=held_back)
        self.mixture = Mixture(sources, reading, seed=recipe.seed, unused=why)
        self._scorers: dict[str, Scorer] = {}  # by prompt

    def __call__(self, optimizer: AdamW, steps: Iterable[int], after_step: Callable[[StepRecord], object]) -> None:
        """Train until `steps` end. A resumed run skips the examples of the steps that its optimizer has made."""
        done = optimizer.steps

        def count_and_report(record: StepRecord) -> None:
            self.mixture.trained(optimizer.steps * self.examples_per_step)
            after_step(record)

        driver = _Driver(steps, count_and_report)
        start = done * self.examples_per_step
        drawn: Keywords = {"mixture": self.mixture, "method": self.method, "start": start, "scorers": self._scorers}
        dataset = datasets.IterableDataset.from_generator(rows, gen_kwargs=drawn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL's, about transformers: no user can act on it
            trainer = self._trainer(dataset, (optimizer.torch, _schedule(optimizer, done)), driver)
            trainer.remove_callback(PrinterCallback)
            with contextlib.suppress(_NoStepsLeft):
                trainer.train()
        # Under bf16 the trainer has put autocast around the model's forward: taken off, since the evaluation has none.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)

    @property
    def examples_per_step(self) -> int:
        """Pairs per step (sft), or problems per step with `direct.group` attempts each (grpo)."""
        stream = self.recipe.stream
        return self.recipe.direct.problems if self.method == "grpo" else stream.batch_size * stream.accumulation

    def _trainer(
        self,
        dataset: datasets.IterableDataset,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        driver: _Driver,
    ) -> SFTTrainer | GRPOTrainer:
        recipe, direct = self.recipe, self.recipe.direct
        common: Keywords = {
            "output_dir": str(recipe.directory),
            "seed": recipe.seed,
            "max_steps": _ENDLESS,
            "max_grad_norm": recipe.optimizer.clip_norm,
            "bf16": recipe.learner.precision == "bf16",
            "use_cpu": self.learner.device.type == "cpu",
            "gradient_checkpointing": False,
            "shuffle_dataset": False,  # the order is ours
            "accelerator_config": {"dispatch_batches": False},
            "include_num_input_tokens_seen": "no" if self.method == "grpo" else "all",  # grpo counts by itself
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        given: Keywords = {
            "model": self.learner.model,
            "train_dataset": dataset,
            "processing_class": self.tokenizer,
            "optimizers": optimizers,
            "callbacks": [driver],
        }
        if self.method == "sft":
            config = SFTConfig(
                per_device_train_batch_size=recipe.stream.batch_size,
                gradient_accumulation_steps=recipe.stream.accumulation,
                max_length=self.length,
                completion_only_loss=True,
                **common,
            )
            config._n_gpu = 1  # no DataParallel over GPUs that other arms leave idle
            return SFTTrainer(args=config, **given)
        config = GRPOConfig(
            per_device_train_batch_size=direct.group,
            gradient_accumulation_steps=direct.problems,
            num_generations=direct.group,
            max_completion_length=recipe.evaluation.max_new_tokens,
            temperature=direct.temperature,
            beta=direct.kl,
            **common,
        )
        config._n_gpu = 1
        judge = partial(reward, stop=recipe.evaluation.stop, scorers=self._scorers)
        return GRPOTrainer(args=config, reward_funcs=judge, **given)


def rows(mixture: Mixture, method: str, start: int, scorers: MutableMapping[str, Scorer]) -> Iterator[dict[str, str]]:
    """Yield a trainer's rows from the pair of number `start` on; put the scorers of problems that have one by their prompts."""
    for example in mixture.pairs(start):
        if example.scorer is not None:  # beside the rows, which the trainer copies
            scorers[example.prompt] = example.scorer
        other = {"completion": example.response} if method == "sft" else {"truth": reference(example)}
        yield {"prompt": example.prompt, **other}


def unused(example: Example, *, tokenizer: PreTrainedTokenizerBase, length: int, held_back: Collection[str]) -> str:
    """Why a pair is not trained on; empty if it is. A trainer would drop one whose prompt alone is too long."""
    if example.lacks or example.key in held_back:
        return example.lacks or HELD_BACK
    document = fitted(example, tokenizer, length)
    return document if isinstance(document, str) else ""


def reward(
    completions: Sequence[str],
    truth: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    stop: Sequence[str] = (),
    **other: object,
) -> list[float]:
    """Return 1 for a correct final answer before the first stop string, else 0, per attempt: judged as in the evaluation."""
    asked = prompts or [""] * len(completions)
    return [
        float(is_correct(before_stop(text, stop), answer, scorer=(scorers or {}).get(prompt)))
        for text, answer, prompt in zip(completions, truth, asked, strict=True)
    ]


def _check_answers(source: SourceConfig, *, skips: bool) -> None:
    """Raise UserError if the source's first pair has no final answer that attempts can be compared with."""
    (example,), _ = pairs(source, 1, skips=skips)
    if not states_answer(example):
        raise UserError(
            f"{source.origin}: grpo rewards right final answers, and its solutions mark none: they need ####, \\boxed{{}}, "
            "or a field named answer"
        )
    if needs_mathematics(example):
        math_verify()


def _schedule(optimizer: AdamW, done: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The run's own learning rates; also keeps its optimizer's count of steps equal to the trainer's."""

    def factor(step: int) -> float:
        optimizer.steps = done + step
        return optimizer.learning_rate() / optimizer.config.lr

    return torch.optim.lr_scheduler.LambdaLR(optimizer.torch, factor)


class _NoStepsLeft(Exception):
    """The budget was spent before training began."""


class _Driver(TrainerCallback):
    """Takes each step's number from the budget, and reports the trainer's log of the step to the run."""

    def __init__(self, steps: Iterable[int], after_step: Callable[[StepRecord], object]) -> None:
        self._steps, self._after_step = iter(steps), after_step
        self._step: int | None = None
        self._read = 0
        self._random = random_state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **other: object
    ) -> None:
        if self._step is not None:
            return
        set_random_state(self._random)  # the trainer has set the seed, and its loader has drawn random numbers
        self._step = next(self._steps, None)  # the clock starts here: building the trainer is not training
        if self._step is None:
            raise _NoStepsLeft

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Model = None,
        **other: object,
    ) -> None:
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        if not math.isfinite(norm):
            raise NonFinite(f"the learner's gradient is {norm}", "lower optimizer.lr")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **other: object,
    ) -> None:
        if "loss" not in logs:  # the trainer's summary, at its end
            return
        assert self._step is not None
        read, self._read = int(state.num_input_tokens_seen) - self._read, int(state.num_input_tokens_seen)
        side = {"reward": logs["reward"]} if "reward" in logs else {}
        rates = {"lr": logs["learning_rate"], "grad_norm": logs.get("grad_norm", 0.0)}
        self._after_step(StepRecord(self._step, logs["loss"], read, rates, side))
        self._step = next(self._steps, None)
        control.should_training_stop = self._step is None
