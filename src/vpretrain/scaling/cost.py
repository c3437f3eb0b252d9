"""FLOPs of passes through a transformer, and the fewest that a meta update could take (docs/METHODS.md).

A matrix product counts 2 FLOPs per parameter and token. Backward has two products for each of forward's: one for the states,
one for the weights where they are trained. Attention compares every token with all of its row, masked or not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Read:
    """The input of a pass: tokens, how many of their successors are targets, and tokens per row."""

    tokens: float
    targets: float
    length: int


@dataclass(frozen=True)
class Transformer:
    """The sizes that determine the FLOPs of its passes."""

    blocks: int  # parameters of all blocks
    head: int  # parameters of the output layer
    # FLOPs of scores and sums per token and position of its row, in all blocks: 4 x blocks x width of queries.
    attention: int
    trained_blocks: int  # the part of `blocks` that has a gradient
    trained_head: bool  # whether the output layer has one

    def through_blocks(self, read: Read) -> float:
        """Return the FLOPs of forward, without the head."""
        return read.tokens * (2 * self.blocks + self.attention * read.length)

    def forward(self, read: Read) -> float:
        """Return the FLOPs of forward, with the head on the targets."""
        return self.through_blocks(read) + 2 * read.targets * self.head

    def back_through_blocks(self, read: Read) -> float:
        """Return the FLOPs of backward, from the states that the head reads."""
        of_weights = 2 * self.trained_blocks * read.tokens
        return self.through_blocks(read) + of_weights + self.attention * read.tokens * read.length

    def step(self, read: Read) -> float:
        """Return the FLOPs of forward and backward."""
        head = 2 * read.targets * self.head * (1 + self.trained_head)
        return self.forward(read) + self.back_through_blocks(read) + head

    def feedback_floor(self, fraction: float, feedback: Read) -> float:
        """Return the FLOPs of g_down: forward, then backward through the head and the fraction of the blocks above S."""
        head = 2 * feedback.targets * self.head
        return self.forward(feedback) + head + fraction * self.back_through_blocks(feedback)

    def value_floor(self, fraction: float, meta: Read, phi: int) -> float:
        """Return the FLOPs of V by jvp: a tangent beside a forward pass through the blocks of S, whose input comes from the
        learner's own pass; then the designer of `phi` parameters, forward and backward."""
        return 2 * fraction * self.through_blocks(meta) + 6 * phi * meta.tokens

    def difference_floor(self, fraction: float, meta: Read, phi: int) -> float:
        """Return the FLOPs of V by finite differences: g_pre like g_down, then two passes through S and the head."""
        upper = fraction * self.through_blocks(meta) + 2 * meta.targets * self.head
        return self.feedback_floor(fraction, meta) + 2 * upper + 6 * phi * meta.tokens


def designer_floor(phi: int, tokens: float) -> float:
    """Return the FLOPs of the designer's forward pass, which every learner step has."""
    return 2 * phi * tokens
