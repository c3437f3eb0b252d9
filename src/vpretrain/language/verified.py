"""Feedback by a verifier: the learner attempts the problems, and g_down is minus the policy gradient of right answers.

    L_down = -(1 / n) sum_i A_i log p(attempt i),    A_i = r_i - mean of the r_j of the other attempts at the same problem

r is 1 for a right final answer, else 0, as in the evaluation. The baseline does not depend on the attempt that it is for, so
in expectation -grad L_down is a sum of the gradients of the problems' mean rewards, with positive weights. The weights are not
equal: problems whose attempts agree have no gradient and are not among the n attempts, so the others count for more.

Shapes: P problems, K attempts at each, B = P K rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.language.config import EvaluationConfig
from vpretrain.language.data.encode import Document, collate
from vpretrain.language.data.example import Example
from vpretrain.language.data.feedback import LanguageFeedback
from vpretrain.language.evaluation.solve import (
    decode,
    math_verify,
    needs_mathematics,
    solves,
    states_answer,
    text_of,
)
from vpretrain.language.model.batch import AttemptBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.method.protocols import with_tensors
from vpretrain.run.left_out import LeftOut
from vpretrain.timing import phase
from vpretrain.types import Json

BATCHES = 4  # of problems at most in one call, until the attempts at one of them differ
AGREED = "attempts that are all right or all wrong"  # why a problem gives no gradient


class VerifiedFeedback:
    """D_fb as problems with an answer, attempted anew by the learner whenever a batch is asked for.

    All processes make all attempts, under the same random numbers, and use those of rank 0; the problems whose attempts differ
    are divided among them.

    Args:
        feedback: the problems, with prompts in place of pairs (`feedback.reward: answer`).
        learner: theta, read only.
        tokenizer: the learner's.
        evaluation: says how long an attempt may be, and where it stops.
        seed: of the attempts.

    Attributes:
        batches_drawn: by domain, how many batches of problems were attempted.
        differed: by domain, the number of problems whose attempts differed in their reward.
        agreed: by domain, the number of those whose attempts did not.
    """

    def __init__(
        self,
        feedback: LanguageFeedback,
        learner: LanguageLearner,
        tokenizer: PreTrainedTokenizerBase,
        evaluation: EvaluationConfig,
        *,
        seed: int,
    ) -> None:
        self._feedback, self._learner, self._tokenizer = feedback, learner, tokenizer
        self._evaluation, self._seed = evaluation, seed
        self._attempts, self._length = feedback.config.attempts, feedback.config.length
        self.batches_drawn, self.differed, self.agreed = (dict.fromkeys(feedback.weights, 0) for _ in range(3))

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each domain."""
        return self._feedback.weights

    @property
    def keys(self) -> frozenset[str]:
        """Identities of all its problems."""
        return self._feedback.keys

    @property
    def examples(self) -> Mapping[str, list[Example]]:
        """Its problems by domain."""
        return self._feedback.examples

    @property
    def left_out(self) -> LeftOut:
        """How many problems were not used, by origin and reason, and how many gave no gradient, by domain."""
        agreed = {f"of domain {domain}": {AGREED: count} for domain, count in self.agreed.items() if count}
        return {**self._feedback.left_out, **agreed}

    def next(self) -> dict[str, AttemptBatch]:
        """Attempt the next problems of every domain, up to BATCHES batches of them, until the attempts at one differ.

        Returns:
            By domain, this process's part of the problems whose attempts differ in their reward; without domains that have
            none.
        """
        found = {domain: self._next(domain) for domain in self.weights}
        return {domain: batch for domain, batch in found.items() if batch is not None}

    def _next(self, domain: str) -> AttemptBatch | None:
        useful: list[tuple[list[Document], list[float]]] = []
        for _ in range(BATCHES):
            attempted = distributed.broadcast(self._attempted(domain))
            self.batches_drawn[domain] += 1
            useful = [(rows, rewards) for rows, rewards in attempted if len(set(rewards)) > 1]
            self.agreed[domain] += len(attempted) - len(useful)
            if useful:
                break
        # Dealt out in turn over all calls, so that a process gets problems even if there is one per call.
        first, size = self.differed[domain], distributed.size()
        own = [one for number, one in enumerate(useful, start=first) if number % size == distributed.rank()]
        self.differed[domain] += len(useful)
        if own:
            return self._batch(own)
        return self._batch(useful[:1]).without_effect() if useful else None

    def _attempted(self, domain: str) -> list[tuple[list[Document], list[float]]]:
        """Return the attempts at each problem of the next batch of a domain, and their rewards."""
        number, learner = self.batches_drawn[domain], self._learner
        examples, prompts = zip(*self._feedback.drawn(domain, number), strict=True)
        room = self._length - max(map(len, prompts))  # at least 1: longer prompts are left out
        seed = random.Random(f"{self._seed}/{domain}/{number}/attempts").getrandbits(63)  # a resumed run draws the same
        devices = [learner.device] if learner.device.type == "cuda" else []
        with phase("meta: attempts"), learner.meta_mode(), torch.random.fork_rng(devices), learner.autocast():
            torch.manual_seed(seed)
            drawn = decode(
                learner,
                self._tokenizer,
                examples,
                min(self._evaluation.max_new_tokens, room),
                samples=self._attempts,
                stop=self._evaluation.stop,
            )
        return [
            (
                [replace(prompt, ids=(*prompt.ids, *ids)) for ids in of_problem],
                [self._reward(example, ids) for ids in of_problem],
            )
            for example, prompt, of_problem in zip(examples, prompts, drawn, strict=True)
        ]

    def _reward(self, example: Example, ids: Sequence[int]) -> float:
        text = text_of(ids, self._tokenizer, self._evaluation.stop)
        return float(solves(text, example))

    def _batch(self, problems: Sequence[tuple[list[Document], list[float]]]) -> AttemptBatch:
        """The attempts as rows, each on its own: rows are not packed, since each has its advantage."""
        rows = [row for of_problem, _ in problems for row in of_problem]
        advantages_PK = leave_one_out(torch.tensor([rewards for _, rewards in problems]))
        batch = collate(rows, self._tokenizer)
        whole = AttemptBatch(**vars(batch), advantages_B=advantages_PK.flatten(), attempts=self._attempts)
        return with_tensors(whole, lambda tensor: tensor.to(self._learner.device))

    def state_dict(self) -> Json:
        """The cursor, and the counts."""
        return {"batches_drawn": {**self.batches_drawn}, "differed": {**self.differed}, "agreed": {**self.agreed}}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor."""
        self.batches_drawn, self.differed, self.agreed = (
            {domain: state[name][domain] for domain in self.weights} for name in ("batches_drawn", "differed", "agreed")
        )


def leave_one_out(rewards_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """Return each reward minus the mean of the others at the same problem."""
    others_PK = rewards_PK.sum(dim=1, keepdim=True) - rewards_PK
    return rewards_PK - others_PK / (rewards_PK.shape[1] - 1)


def check_answers(feedback: LanguageFeedback) -> None:
    """Raise UserError if a problem has no final answer to check attempts by, or one that needs a missing package."""
    for domain, examples in feedback.examples.items():
        without = sum(not states_answer(example) for example in examples)
        if without:
            raise UserError(
                f"feedback '{domain}': {without} of {len(examples)} problems have no final answer that attempts could be "
                "checked by: give them a field named answer, mark it by #### or \\boxed{}, or set feedback.reward=solution"
            )
        if any(needs_mathematics(example) for example in examples):
            math_verify()
