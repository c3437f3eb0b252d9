"""Evaluation of a causal LM: answer NLL and Pass@1 on held-out problems, NLL on unrelated text.

Shapes: B rows, T tokens, N targets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from vpretrain.language.batch import TokenBatch
from vpretrain.language.config import EvaluationConfig
from vpretrain.language.encode import collate, encode
from vpretrain.language.learner import LanguageLearner, one_hot
from vpretrain.language.loss import soft_cross_entropy
from vpretrain.language.source import Example
from vpretrain.run.progress import steady
from vpretrain.statistics import bootstrap_interval

_DECODING = 10
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?"


class Evaluation:
    """What a learner is measured on; loaded once, so that mistakes show before the training and not after.

    Args:
        config: sizes.
        problems: held-out (problem, solution) pairs.
        retention: rows of text unrelated to the feedback.
        tokenizer: the learner's.
    """

    def __init__(
        self, config: EvaluationConfig, problems: Sequence[Example], retention: Sequence[TokenBatch], tokenizer: Any
    ) -> None:
        self.config, self.problems, self.retention, self.tokenizer = config, problems, retention, tokenizer

    def __call__(self, learner: LanguageLearner) -> dict[str, Any]:
        """Figures of the learner as it is; `problems` lists them problem by problem, for paired comparisons."""
        size = self.config.batch_size
        asked = self.problems[: self.config.pass_at_1_problems]
        training = learner.module.training
        learner.module.eval()
        nll: list[float] = []
        solved: list[bool] = []
        retention: list[Tensor] = []
        # A decoded problem costs about as much as this many that are only read.
        work = len(self.problems) + len(self.retention) + _DECODING * len(asked)
        try:
            with torch.no_grad(), steady("       evaluation", work) as done:
                for chunk in _chunks(self.problems, size):
                    rows = [encode(example, self.tokenizer, self.config.length) for example in chunk]
                    nll += row_nll(learner, collate(rows, self.tokenizer).to(learner.device)).tolist()
                    done(len(nll))
                for batch in self.retention:
                    retention.append(token_nll(learner, batch.to(learner.device)).double().cpu())
                    done(len(nll) + len(retention))
                for chunk in _chunks(asked, size):
                    solved += self._solve(learner, chunk)
                    done(len(nll) + len(retention) + _DECODING * len(solved))
        finally:
            learner.module.train(training)
        low, high = bootstrap_interval(nll)
        domains = list(dict.fromkeys(example.domain for example in self.problems))
        result: dict[str, Any] = {
            "answer_nll": mean(nll),
            "answer_nll_low": low,
            "answer_nll_high": high,
            "pass_at_1": mean(solved) if solved else None,
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
            for i, (example, value) in enumerate(zip(self.problems, nll, strict=True))
        ]
        return result

    def _solve(self, learner: LanguageLearner, examples: Sequence[Example]) -> list[bool]:
        """Greedy decoding; an answer counts if its final value equals the reference's."""
        prompts = [self.tokenizer(example.prompt, add_special_tokens=False)["input_ids"] for example in examples]
        if prefix := self.tokenizer("")["input_ids"]:
            prompts = [prefix + ids for ids in prompts]
        length = max(map(len, prompts))
        ids_BT = torch.zeros(len(prompts), length, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(prompts):
            ids_BT[row, length - len(ids) :] = torch.tensor(ids)
            mask_BT[row, length - len(ids) :] = 1
        generated = learner.model.generate(
            input_ids=ids_BT.to(learner.device),
            attention_mask=mask_BT.to(learner.device),
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id,
        )[:, length:]
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [is_correct(text, reference(example)) for text, example in zip(texts, examples, strict=True)]


def token_nll(learner: LanguageLearner, batch: TokenBatch) -> Tensor:
    """NLL of every target, [N], in nats."""
    return soft_cross_entropy(learner.forward(batch).logits_NV, one_hot(batch))


def row_nll(learner: LanguageLearner, batch: TokenBatch) -> Tensor:
    """Mean NLL over the targets of each row, [B], in nats a token."""
    row_N = batch.predicts_BT.nonzero()[:, 0]
    loss_N = token_nll(learner, batch)
    sums_B = torch.zeros(len(batch.domains), dtype=torch.float64, device=loss_N.device)
    counts_B = torch.zeros_like(sums_B)
    sums_B.index_add_(0, row_N, loss_N.double())
    counts_B.index_add_(0, row_N, torch.ones_like(loss_N, dtype=torch.float64))
    return sums_B / counts_B


def _chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[i : i + size] for i in range(0, len(examples), size))


def reference(example: Example) -> str:
    """The true final answer of a problem: what follows #### in its solution, else its field `answer`."""
    if "####" in example.response:
        return final_answer(example.response)
    return str(example.fields.get("answer", example.response))


def final_answer(text: str) -> str:
    """What follows the first ####, else the last number, else the last line."""
    marked = re.search(r"####\s*(.+)", text)
    if marked:
        return marked[1].strip()
    numbers = re.findall(_NUMBER, text)
    lines = text.strip().splitlines()
    return numbers[-1] if numbers else (lines[-1].strip() if lines else "")


def is_correct(text: str, truth: str) -> bool:
    """Whether the final answer in `text` equals `truth`, as numbers where both are."""
    answer = final_answer(text)
    ours, theirs = _value(answer), _value(truth)
    if ours is not None and theirs is not None:
        return abs(ours - theirs) <= 1e-6 * max(1.0, abs(theirs))
    return answer.casefold() == truth.strip().casefold()


def _value(text: str) -> float | None:
    numbers = re.findall(_NUMBER, text)
    if not numbers:
        return None
    numerator, _, denominator = numbers[0].replace(",", "").partition("/")
    if denominator:
        return float(numerator) / float(denominator) if float(denominator) else None
    return float(numerator)
