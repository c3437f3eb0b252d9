"""Token batches, as the stream, the feedback and the evaluation pass them to the learner.

Shapes: B rows, T tokens per row, N targets (tokens that are predicted, over all rows).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpretrain.method.protocols import with_tensors
from vpretrain.types import Keywords

_NEXT_TO_NONE = 1e-20  # beside weights of 1 / T nothing is left of it, and its own mean is still exact


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens. Several documents may share a row; positions restart with each, and attention stays within it.

    Attributes:
        ids_BT: token ids. After its last document a row is filled with an arbitrary id, as one more document.
        positions_BT: position within the document; a new document begins where it returns to 0.
        weights_BT: weight of each token *as a target*; 0: not predicted. A document's first token is never a target.
            Built from lengths, never from a comparison with the padding id.
        domains: domain of each row.
        keys: for each row the identities of the examples in it (see `Example.key`).
    """

    ids_BT: Int[Tensor, "B T"]
    positions_BT: Int[Tensor, "B T"]
    weights_BT: Float[Tensor, "B T"]
    domains: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]

    @property
    def predicts_BT(self) -> Bool[Tensor, "B T"]:
        """Positions whose next token is a target."""
        predicts_BT = torch.zeros_like(self.weights_BT, dtype=torch.bool)
        predicts_BT[:, :-1] = self.weights_BT[:, 1:] > 0
        return predicts_BT

    @property
    def targets_N(self) -> Int[Tensor, " N"]:
        """The true tokens w_t, in row order."""
        return self.ids_BT[:, 1:][self.weights_BT[:, 1:] > 0]

    @property
    def weights_N(self) -> Float[Tensor, " N"]:
        """The weights of the targets."""
        return self.weights_BT[:, 1:][self.weights_BT[:, 1:] > 0]

    @property
    def share_N(self) -> Float[Tensor, " N"]:
        """The weights of the targets, normalised to sum to 1."""
        return self.weights_N / self.weights_N.sum()

    @property
    def weight(self) -> float:
        """Total weight of the targets."""
        return float(self.weights_BT[:, 1:].sum())

    @property
    def units(self) -> int:
        """The number of tokens that the learner reads, padding included: the unit of throughput."""
        return self.ids_BT.numel()

    def restrict(
        self, *, domain: str | None = None, more: Sequence[TokenBatch] = (), rows: int, length: int
    ) -> TokenBatch | None:
        """The first `rows` rows (of `domain`) that still have a target within `length` tokens; None if there are none.

        Args:
            domain: None: any.
            more: the further micro-batches of the step, from which the rows come that are missing here.
            rows: maximum number of rows.
            length: maximum number of tokens per row.
        """
        parts: list[TokenBatch] = []
        missing = rows
        for batch in (self, *more):
            chosen = [
                row
                for row, name in enumerate(batch.domains)
                if (domain is None or name == domain) and bool((batch.weights_BT[row, 1:length] > 0).any())
            ][:missing]
            if chosen:
                parts.append(batch.rows(chosen, length))
                missing -= len(chosen)
            if not missing:
                break
        return _joined(parts) if parts else None

    def rows(self, chosen: Sequence[int], length: int | None = None) -> TokenBatch:
        """The chosen rows, cut to `length` tokens, with the weights that they would have been given at this length."""
        index = list(chosen)
        return TokenBatch(
            self.ids_BT[index, :length],
            self.positions_BT[index, :length],
            self._weights_of(index, length),
            tuple(self.domains[row] for row in index),
            tuple(self.keys[row] for row in index),
        )

    def _weights_of(self, index: list[int], length: int | None) -> Float[Tensor, "b t"]:
        """The targets' weights in rows that are cut, as `collate` gives them.

        On average over tokens they are 1, cut or not. On average over examples a pair's are 1 together, those of raw text 1 / T
        each. (No pair has T targets, so the weight shows what it is.)
        """
        weights_BT = self.weights_BT[index]
        whole = weights_BT.shape[1]
        if length is None or length >= whole:
            return weights_BT
        document_BT = (self.positions_BT[index] == 0).cumsum(1)
        # The targets of the document at the end of the cut row, and how many of them there were for each one that is left.
        last_BT = (document_BT == document_BT[:, length - 1 : length]) & (weights_BT > 0)
        times_B1 = last_BT.sum(1, keepdim=True) / last_BT[:, :length].sum(1, keepdim=True).clamp_min(1)
        of_pairs_BT = torch.where(last_BT & (weights_BT < 1), weights_BT * times_B1, weights_BT)
        return of_pairs_BT.masked_fill(weights_BT == 1 / whole, 1 / length)[:, :length]

    def apart(self) -> list[TokenBatch]:
        """Return each document that has a target as its own batch."""
        documents = []
        for row in range(len(self.domains)):
            starts = (self.positions_BT[row] == 0).nonzero()[:, 0].tolist()
            for start, end in itertools.pairwise([*starts, self.ids_BT.shape[1]]):
                of_row = self.rows([row])
                within: Keywords = {name: t[:, start:end] for name, t in vars(of_row).items() if isinstance(t, Tensor)}
                documents.append(replace(of_row, **within))
        return [document for document in documents if document.weight > 0]

    def reweighted(self, weights_N: Float[Tensor, " N"]) -> TokenBatch:
        """The same targets with other weights, all above 0."""
        weights_BT = self.weights_BT.clone()
        weights_BT[:, 1:][self.weights_BT[:, 1:] > 0] = weights_N.to(weights_BT)
        return replace(self, weights_BT=weights_BT)

    def with_targets(self) -> TokenBatch:
        """The same tokens, all of them targets, with next to no weight: in a mean over processes they do not count."""
        return replace(self, weights_BT=torch.full_like(self.weights_BT, _NEXT_TO_NONE))

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TokenBatch:
        """The same batch in pinned memory, which a GPU can copy from while it computes."""
        return with_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True)
class AttemptBatch(TokenBatch):
    """Attempts at problems, one per row, whose targets count by the attempt's advantage, positive or negative.

    The cross-entropy to its targets is -(1 / B) sum_i A_i log p(attempt i), and its gradient is minus the policy gradient of
    the reward. An attempt counts once, whatever its length: divided by it, a long wrong attempt would be discouraged less than
    a short one.

    Attributes:
        advantages_B: A, the reward of each attempt minus that of the other attempts at its problem.
        attempts: number of attempts at each problem; these are neighbouring rows.
    """

    advantages_B: Float[Tensor, " B"]
    attempts: int

    @property
    def share_N(self) -> Float[Tensor, " N"]:
        """A / B of each target's row; the sum has no meaning, and may be 0."""
        return (self.advantages_B / len(self.advantages_B))[self.predicts_BT.nonzero()[:, 0]]

    @property
    def weight(self) -> float:
        """Number of problems whose attempts differ in their reward."""
        return float((self.advantages_B.view(-1, self.attempts) != 0).any(dim=1).sum())

    def apart(self) -> list[TokenBatch]:
        """Return the attempts at each problem as a batch of their own, without problems that have no gradient."""
        problems = []
        for first in range(0, len(self.domains), self.attempts):
            rows = slice(first, first + self.attempts)
            of_problem: Keywords = {
                name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor | tuple)
            }
            problems.append(replace(self, **of_problem))
        return [problem for problem in problems if problem.weight > 0]

    def without_effect(self) -> AttemptBatch:
        """The same rows at advantage 0: for a process that has no problem of its own, and must make the same passes."""
        return replace(self, advantages_B=torch.zeros_like(self.advantages_B))


def _joined(parts: Sequence[TokenBatch]) -> TokenBatch:
    """The rows of all parts as one batch; shorter rows are filled up."""
    if len(parts) == 1:
        return parts[0]
    length = max(part.ids_BT.shape[1] for part in parts)
    filled = [_filled(part, length) for part in parts]
    return TokenBatch(
        torch.cat([part.ids_BT for part in filled]),
        torch.cat([part.positions_BT for part in filled]),
        torch.cat([part.weights_BT for part in filled]),
        tuple(itertools.chain(*(part.domains for part in filled))),
        tuple(itertools.chain(*(part.keys for part in filled))),
    )


def _filled(batch: TokenBatch, length: int) -> TokenBatch:
    """The same rows at `length` tokens: the rest is one more document, without targets."""
    rows, whole = batch.ids_BT.shape
    positions_BT = torch.arange(length - whole, device=batch.ids_BT.device).expand(rows, -1)
    return replace(
        batch,
        ids_BT=F.pad(batch.ids_BT, (0, length - whole)),
        positions_BT=torch.cat([batch.positions_BT, positions_BT], dim=1),
        weights_BT=F.pad(batch.weights_BT, (0, length - whole)),
    )
