"""The feedback set: (problem, verified solution) pairs by domain. Its batches go to the evaluator and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.errors import Unreadable, UserError
from vpretrain.language.config import FeedbackConfig, SourceConfig
from vpretrain.language.data.encode import Document, collate, fitted, packed, prompted
from vpretrain.language.data.example import Example
from vpretrain.language.data.source import nothing_left, open_source
from vpretrain.language.model.batch import TokenBatch
from vpretrain.order import Shuffled
from vpretrain.run.left_out import LeftOut, by_source, listed
from vpretrain.run.skipped import UNREADABLE
from vpretrain.types import Json

_MOST = 100_000  # pairs per source at most; feedback is small by nature


class LanguageFeedback:
    """D_fb, the feedback set.

    Args:
        config: sources, each in its domain.
        tokenizer: the learner's.
        seed: order of the pairs.
        packing: whether several pairs may share a row.
        average: as in `collate`.
        rank: this process, from 0.
        processes: their number. The pairs of a batch are divided among them and do not depend on it.

    Attributes:
        left_out: how many pairs are not used, by origin and reason.

    Raises:
        UserError: a source is raw text, or has no solution left within `length`; or a batch has fewer pairs than there are
            processes.
    """

    def __init__(
        self,
        config: FeedbackConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        packing: bool,
        average: Literal["tokens", "examples"] = "tokens",
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if config.batch_size < processes:
            raise UserError(f"feedback.batch_size={config.batch_size} is below the {processes} processes: raise it")
        self.config, self.tokenizer, self.packing, self.average = config, tokenizer, packing, average
        self._own = range(rank, config.batch_size, processes)
        self.device: torch.device | str = "cpu"
        self.batches_drawn = 0
        self.examples: dict[str, list[Example]] = {}
        self._usable: dict[str, list[tuple[Example, Document]]] = {}
        # The learner's attempts take the place of solutions, which need not fit then.
        encoded = prompted if config.reward == "answer" else fitted
        left_out: list[tuple[str, Counter[str]]] = []
        weights: dict[str, float] = {}
        for source in config.sources:
            examples, reasons = pairs(source)
            found = [(example, encoded(example, tokenizer, config.length)) for example in examples]
            usable = [(example, document) for example, document in found if isinstance(document, Document)]
            reasons.update(reason for _, reason in found if isinstance(reason, str))
            left_out.append((source.origin, reasons))
            self.examples.setdefault(source.domain, []).extend(examples)
            self._usable.setdefault(source.domain, []).extend(usable)
            weights[source.domain] = weights.get(source.domain, 0.0) + source.weight
        self.left_out = by_source(left_out)
        for domain, usable in self._usable.items():
            if not usable:
                raise UserError(
                    f"feedback '{domain}': no pair has a solution token within feedback.length={config.length}; raise it "
                    f"({'; '.join(map(listed, self.left_out.values()))})"
                )
        self.weights = {domain: weight / sum(weights.values()) for domain, weight in weights.items()}
        self._order = {domain: Shuffled(len(d), f"{seed}/{domain}") for domain, d in self._usable.items()}

    @property
    def has_chats(self) -> bool:
        """Whether a source gives chats."""
        return any(example.turns for examples in self.examples.values() for example in examples)

    @property
    def keys(self) -> frozenset[str]:
        """Identities of all its problems."""
        return frozenset(example.key for examples in self.examples.values() for example in examples)

    def next(self) -> dict[str, TokenBatch]:
        """Return this process's part of the next `batch_size` pairs of every domain; each epoch has its own order."""
        batches = {}
        for domain in self._usable:
            pairs_drawn = self.drawn(domain, self.batches_drawn)
            chosen = [pairs_drawn[i][1] for i in self._own]
            rows = packed(chosen, self.config.length) if self.packing else chosen
            batches[domain] = collate(rows, self.tokenizer, average=self.average).to(self.device)
        self.batches_drawn += 1
        return batches

    def drawn(self, domain: str, batch: int) -> list[tuple[Example, Document]]:
        """The batch of that number of a domain, whole, as examples with their tokens."""
        first, order, usable = batch * self.config.batch_size, self._order[domain], self._usable[domain]
        return [usable[order[first + i]] for i in range(self.config.batch_size)]

    def state_dict(self) -> Json:
        """The cursor."""
        return {"batches_drawn": self.batches_drawn}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor."""
        self.batches_drawn = state["batches_drawn"]


def pairs(source: SourceConfig, count: int = _MOST, *, skips: bool = False) -> tuple[list[Example], Counter[str]]:
    """Return the first `count` pairs of a source, and how many rows were left out on the way because they lack a part.

    With `skips` rows that cannot be read are left out as well.

    Raises:
        UserError: its rows are raw text, there is no pair, or a row cannot be read.
    """
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for example in open_source(source, skips=skips).outcomes():
        if len(examples) == count:
            break
        if isinstance(example, Unreadable):
            if not skips:
                raise example
            left_out[UNREADABLE] += 1
        elif example.lacks:
            left_out[example.lacks] += 1
        else:
            examples.append(example)
    if left_out and not examples:
        raise UserError(f"{source.origin}: no row has both prompt and response: {listed(left_out)}; check the fields")
    if count and not examples:
        raise nothing_left(source)
    if not all(example.prompt for example in examples):
        raise UserError(
            f"{source.origin}: feedback and evaluation need pairs: give prompt and response templates, or messages"
        )
    return examples, left_out


def problems(sources: Sequence[SourceConfig], count: int) -> tuple[list[Example], LeftOut]:
    """Return the first `count` problems of every source, for evaluation, and what was left out, by origin and reason."""
    found = [(source.origin, *pairs(source, count)) for source in sources]
    examples = [example for _, own, _ in found for example in own]
    return examples, by_source((origin, reasons) for origin, _, reasons in found)


def check_roles(feedback: frozenset[str], evaluation: frozenset[str]) -> None:
    """Raise UserError if a problem is in both feedback and evaluation."""
    both = feedback & evaluation
    if both:
        raise UserError(
            f"{len(both)} problems are in both feedback and evaluation: keep them apart with skip and limit, "
            "other files, or disjoint task_indices"
        )
