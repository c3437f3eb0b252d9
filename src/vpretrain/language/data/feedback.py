"""The feedback set: (problem, verified solution) pairs by domain. Its batches go to the evaluator and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.errors import UserError
from vpretrain.language.config import FeedbackConfig, SourceConfig
from vpretrain.language.data.encode import Document, collate, encode, packed
from vpretrain.language.data.source import Example, open_source
from vpretrain.language.model.batch import TokenBatch
from vpretrain.order import Shuffled
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
        weights: dict[str, float] = {}
        for source in config.sources:
            self.examples.setdefault(source.domain, []).extend(pairs(source))
            weights[source.domain] = weights.get(source.domain, 0.0) + source.weight
        self.weights = {domain: weight / sum(weights.values()) for domain, weight in weights.items()}
        self._documents = {domain: self._encode(domain, examples) for domain, examples in self.examples.items()}
        self._order = {domain: Shuffled(len(d), f"{seed}/{domain}") for domain, d in self._documents.items()}

    @property
    def keys(self) -> frozenset[str]:
        """Identities of all its problems."""
        return frozenset(example.key for examples in self.examples.values() for example in examples)

    def next(self) -> dict[str, TokenBatch]:
        """Return this process's part of the next `batch_size` pairs of every domain; each epoch has its own order."""
        batches = {}
        for domain, documents in self._documents.items():
            first = self.batches_drawn * self.config.batch_size
            chosen = [documents[self._order[domain][first + i]] for i in self._own]
            rows = packed(chosen, self.config.length) if self.packing else chosen
            batches[domain] = collate(rows, self.tokenizer, average=self.average).to(self.device)
        self.batches_drawn += 1
        return batches

    def state_dict(self) -> Json:
        """The cursor."""
        return {"batches_drawn": self.batches_drawn}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor."""
        self.batches_drawn = state["batches_drawn"]

    def _encode(self, domain: str, examples: Sequence[Example]) -> list[Document]:
        documents = [encode(example, self.tokenizer, self.config.length) for example in examples]
        usable = [document for document in documents if document.targets > 0]
        if not usable:
            raise UserError(
                f"feedback '{domain}': no pair has a solution token within feedback.length={self.config.length}; raise it"
            )
        return usable


def pairs(source: SourceConfig, count: int = _MOST) -> list[Example]:
    """Return the first `count` pairs of a source. Raises UserError if its rows are raw text."""
    examples = list(islice(open_source(source), count))
    if count and not examples:
        raise UserError(f"{source.origin}: no examples are left after skip={source.skip}")
    if not all(example.prompt for example in examples):
        raise UserError(f"{source.origin}: feedback and evaluation need pairs: give prompt and response templates")
    return examples


def problems(sources: Sequence[SourceConfig], count: int) -> list[Example]:
    """The first `count` problems of every source, for evaluation."""
    return [example for source in sources for example in pairs(source, count)]


def check_roles(feedback: frozenset[str], evaluation: frozenset[str]) -> None:
    """Raise UserError if a problem is in both feedback and evaluation."""
    both = feedback & evaluation
    if both:
        raise UserError(
            f"{len(both)} problems are in both feedback and evaluation: keep them apart with skip and limit, "
            "other files, or disjoint task_indices"
        )
