"""Evaluation of a causal LM: answer NLL, top-1 accuracy, Pass@1 and Pass@k on held-out problems, NLL on unrelated text.

Shapes: B rows, T tokens, N targets, G temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vpretrain.compare.statistics import interval
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.language.config import EvaluationConfig
from vpretrain.language.data.encode import collate, encode, encoded_problems
from vpretrain.language.data.example import Example
from vpretrain.language.evaluation.calibration import SCALES, tempered
from vpretrain.language.evaluation.solve import math_verify, needs_mathematics, pass_at_k, reference, solve, solves
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.run.left_out import LeftOut
from vpretrain.types import Json

_DECODING = 10
_END = 200  # characters of an attempt that a result keeps


class Evaluation:
    """The evaluation of a learner; its data are loaded once, so that mistakes show before training and not after it.

    Args:
        config: sizes.
        problems: held-out (problem, solution) pairs.
        retention: rows of text unrelated to the feedback.
        tokenizer: the learner's.
        left_out: how many pairs of its sources lack a part, by origin and reason.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        problems: Sequence[Example],
        retention: Sequence[TokenBatch],
        tokenizer: PreTrainedTokenizerBase,
        left_out: LeftOut | None = None,
    ) -> None:
        self.config, self.problems, self.retention, self.tokenizer = config, problems, retention, tokenizer
        self.left_out = left_out or {}
        encoded = encoded_problems(problems, tokenizer, config.length)
        without = sum(document.targets <= 0 for document in encoded)
        if without:
            raise UserError(
                f"{without} of {len(problems)} problems of the evaluation have no solution token within "
                f"evaluation.length={config.length}; raise it, or leave them out with exclude"
            )
        if any(needs_mathematics(example) for example in problems[: config.pass_at_1_problems]):
            math_verify()  # a missing package fails now, not after training

    def __call__(self, learner: LanguageLearner) -> Json:
        """Measure the learner as it is; `problems` lists the figures per problem, for paired comparisons."""
        size = self.config.batch_size
        asked = self.problems[: self.config.pass_at_1_problems]
        nll_G: list[Tensor] = []
        top_1: list[float] = []
        attempts: list[str] = []
        correct: list[int] = []  # per problem, of the sampled solutions
        retention: list[Tensor] = []
        # Decoding one problem costs about as much as reading _DECODING of them.
        work = len(self.problems) + len(self.retention) + _DECODING * len(asked) * (1 + self.config.samples)
        with learner.meta_mode(), torch.no_grad(), steady("       evaluation", work) as done:
            for chunk in _chunks(self.problems, size):
                rows = [encode(example, self.tokenizer, self.config.length) for example in chunk]
                nll_BG, top_1_B = row_scores(learner, collate(rows, self.tokenizer).to(learner.device))
                nll_G.append(nll_BG.cpu())
                top_1 += top_1_B.tolist()
                done(len(top_1))
            for batch in self.retention:
                retention.append(learner.nll(batch.to(learner.device)).double().cpu())
                done(len(self.problems) + len(retention))
            read = len(self.problems) + len(retention)
            for chunk in _chunks(asked, size):
                before, each = read + _DECODING * len(attempts), _DECODING * len(chunk)
                found = self._solutions(learner, chunk, done=lambda fraction, b=before, e=each: done(b + fraction * e))
                attempts += [greedy for (greedy,) in found]
                done(before + each)
            solved = [solves(text, example) for text, example in zip(attempts, asked, strict=True)]
            with torch.random.fork_rng():  # the run's own random numbers stay
                for example in asked if self.config.samples else ():
                    torch.manual_seed(int(example.key, 16))  # the same draws for every model, and in every order
                    (drawn,) = self._solutions(learner, [example], samples=self.config.samples)
                    correct.append(sum(solves(text, example) for text in drawn))
                    done(read + _DECODING * (len(solved) + self.config.samples * len(correct)))
        nll_NG = torch.cat(nll_G).numpy()
        nll = nll_NG[:, SCALES.index(1.0)].tolist()
        tempered_N, temperature = tempered(nll_NG)
        low, high = interval([nll]) if len(nll) > 1 else (None, None)
        by_domain: dict[str, list[float]] = {}
        for example, value in zip(self.problems, nll, strict=True):
            by_domain.setdefault(example.domain, []).append(value)
        result: Json = {
            "answer_nll": mean(nll),
            "answer_nll_low": low,
            "answer_nll_high": high,
            "answer_nll_tempered": float(tempered_N.mean()),
            "temperature": temperature,
            "answer_top_1": mean(top_1),
            "pass_at_1": mean(solved) if solved else None,
            **({"pass_at_k": pass_at_k(correct, self.config.samples)} if correct else {}),
            "retention_nll": float(torch.cat(retention).mean()) if retention else None,
        }
        if len(by_domain) > 1:
            result["answer_nll_by_domain"] = {domain: mean(values) for domain, values in by_domain.items()}
        problems = [
            {
                "key": example.key,
                "domain": example.domain,
                "nll": nll[i],
                "nll_tempered": float(tempered_N[i]),
                "top_1": top_1[i],
            }
            | (_compared(solved[i], attempts[i], example) if i < len(solved) else {})
            | ({"correct_samples": correct[i]} if i < len(correct) else {})
            for i, example in enumerate(self.problems)
        ]
        return result | {"problems": problems}

    def _solutions(self, learner: LanguageLearner, examples: Sequence[Example], **kwargs: Any) -> list[list[str]]:
        """Return solutions of each problem: `samples` drawn ones, or the greedy one."""
        kwargs |= {"temperature": self.config.temperature, "stop": self.config.stop}
        return solve(learner, self.tokenizer, examples, self.config.max_new_tokens, **kwargs)


def row_scores(learner: LanguageLearner, batch: TokenBatch) -> tuple[Float[Tensor, "B G"], Float[Tensor, " B"]]:
    """Return the mean NLL over the targets of each row at each temperature, in nats per token, and the fraction of its targets
    that are the likeliest token."""
    nll_NG, likeliest_N = learner.scores(batch, SCALES)
    each = torch.cat([nll_NG, likeliest_N[:, None]], dim=1).double()
    row_N = batch.predicts_BT.nonzero()[:, 0]
    sums = each.new_zeros(len(batch.domains), each.shape[1]).index_add_(0, row_N, each)
    means = sums / row_N.bincount(minlength=len(sums))[:, None]
    return means[:, :-1], means[:, -1]


def _compared(solved: bool, attempt: str, example: Example) -> Json:
    """Return whether an attempt is right, with what was compared: its end and the true answer."""
    return {"solved": solved, "attempt": attempt[-_END:], "answer": reference(example)}


def _chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[i : i + size] for i in range(0, len(examples), size))
