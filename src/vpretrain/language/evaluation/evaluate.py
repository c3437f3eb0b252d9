"""Evaluation of a causal LM: answer NLL, Pass@1 and Pass@k on held-out problems, NLL on unrelated text.

Shapes: B rows, T tokens, N targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vpretrain.compare.statistics import bootstrap_interval
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.language.config import EvaluationConfig
from vpretrain.language.data.encode import collate, encode
from vpretrain.language.data.source import Example
from vpretrain.language.evaluation.solve import (
    is_correct,
    math_verify,
    needs_mathematics,
    pass_at_k,
    reference,
    sampling_seed,
    solve,
)
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.types import Json

_DECODING = 10


class Evaluation:
    """The evaluation of a learner; its data are loaded once, so that mistakes show before training and not after it.

    Args:
        config: sizes.
        problems: held-out (problem, solution) pairs.
        retention: rows of text unrelated to the feedback.
        tokenizer: the learner's.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        problems: Sequence[Example],
        retention: Sequence[TokenBatch],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.config, self.problems, self.retention, self.tokenizer = config, problems, retention, tokenizer
        without = sum(encode(example, tokenizer, config.length).targets <= 0 for example in problems)
        if without:
            raise UserError(
                f"{without} of {len(problems)} problems of the evaluation have no solution token within "
                f"evaluation.length={config.length}; raise it, or leave them out with exclude"
            )
        if any(needs_mathematics(reference(example)) for example in problems[: config.pass_at_1_problems]):
            math_verify()  # a missing package fails now, not after training

    def __call__(self, learner: LanguageLearner) -> Json:
        """Measure the learner as it is; `problems` lists the figures per problem, for paired comparisons."""
        size = self.config.batch_size
        asked = self.problems[: self.config.pass_at_1_problems]
        training = learner.module.training
        learner.module.eval()
        nll: list[float] = []
        solved: list[bool] = []
        correct: list[int] = []  # per problem, of the sampled solutions
        retention: list[Tensor] = []
        # Decoding one problem costs about as much as reading _DECODING of them.
        work = len(self.problems) + len(self.retention) + _DECODING * len(asked) * (1 + self.config.samples)
        try:
            with torch.no_grad(), steady("       evaluation", work) as done:
                for chunk in _chunks(self.problems, size):
                    rows = [encode(example, self.tokenizer, self.config.length) for example in chunk]
                    nll += row_nll(learner, collate(rows, self.tokenizer).to(learner.device)).tolist()
                    done(len(nll))
                for batch in self.retention:
                    retention.append(learner.nll(batch.to(learner.device)).double().cpu())
                    done(len(nll) + len(retention))
                read = len(nll) + len(retention)
                for chunk in _chunks(asked, size):
                    before, each = read + _DECODING * len(solved), _DECODING * len(chunk)
                    counts = self._solve(learner, chunk, done=lambda share, b=before, e=each: done(b + share * e))
                    solved += [bool(count) for count in counts]
                    done(before + each)
                with sampling_seed():
                    for chunk in _chunks(asked, 1) if self.config.samples else ():
                        correct += self._solve(learner, chunk, self.config.samples)
                        done(read + _DECODING * (len(solved) + self.config.samples * len(correct)))
        finally:
            learner.module.train(training)
        low, high = bootstrap_interval(nll)
        domains = list(dict.fromkeys(example.domain for example in self.problems))
        result: Json = {
            "answer_nll": mean(nll),
            "answer_nll_low": low,
            "answer_nll_high": high,
            "pass_at_1": mean(solved) if solved else None,
            **({"pass_at_k": pass_at_k(correct, self.config.samples)} if correct else {}),
            "retention_nll": float(torch.cat(retention).mean()) if retention else None,
        }
        if len(domains) > 1:
            result["answer_nll_by_domain"] = {
                domain: mean(
                    value for example, value in zip(self.problems, nll, strict=True) if example.domain == domain
                )
                for domain in domains
            }
        result["problems"] = [
            {"key": example.key, "domain": example.domain, "nll": value}
            | ({"solved": solved[i]} if i < len(solved) else {})
            | ({"correct_samples": correct[i]} if i < len(correct) else {})
            for i, (example, value) in enumerate(zip(self.problems, nll, strict=True))
        ]
        return result

    def _solve(self, learner: LanguageLearner, examples: Sequence[Example], samples: int = 0, **how: Any) -> list[int]:
        """Count the correct solutions of each problem: of `samples` drawn ones, or of the greedy one."""
        config, tokenizer = self.config, self.tokenizer
        solutions = solve(
            learner,
            tokenizer,
            examples,
            config.max_new_tokens,
            samples=samples,
            temperature=config.temperature,
            stop=config.stop,
            **how,
        )
        return [
            sum(is_correct(text, reference(example)) for text in texts)
            for texts, example in zip(solutions, examples, strict=True)
        ]


def row_nll(learner: LanguageLearner, batch: TokenBatch) -> Tensor:
    """Mean NLL over the targets of each row, [B], in nats per token."""
    row_N = batch.predicts_BT.nonzero()[:, 0]
    loss_N = learner.nll(batch)
    sums_B = torch.zeros(len(batch.domains), dtype=torch.float64, device=loss_N.device)
    counts_B = torch.zeros_like(sums_B)
    sums_B.index_add_(0, row_N, loss_N.double())
    counts_B.index_add_(0, row_N, torch.ones_like(loss_N, dtype=torch.float64))
    return sums_B / counts_B


def _chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[i : i + size] for i in range(0, len(examples), size))
