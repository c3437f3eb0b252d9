"""The tokens that enter the lowest block of S: a tangent through the last blocks, or a gradient over them, starts from these.

Shapes: B images, T tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vpretrain.types import Keywords


@dataclass(frozen=True)
class BlockEntry:
    """Where the last blocks start.

    Attributes:
        tokens_BTD: what enters the first of them, without gradient.
        rope: rotary positions, the same for all images, in families that have them.
        number: of this block.
    """

    tokens_BTD: Float[Tensor, "B T D"]
    rope: tuple[Tensor, Tensor] | None
    number: int

    def rows(self, chosen: slice, of: int) -> BlockEntry:
        """Return the entry at some of its `of` rows, with equally many images each."""
        return replace(self, tokens_BTD=self.tokens_BTD.unflatten(0, (of, -1))[chosen].flatten(0, 1))


class BlockEntries:
    """Record what enters a block of a backbone.

    Args:
        blocks: of the backbone.
        number: of the block.
    """

    def __init__(self, blocks: nn.ModuleList, number: int) -> None:
        self.number = number
        self._recording = False
        self._seen: BlockEntry | None = None
        self._hook = blocks[number].register_forward_pre_hook(self._enter, with_kwargs=True)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record one pass, for `take`."""
        self._recording, self._seen = True, None
        try:
            yield
        finally:
            self._recording = False

    def take(self) -> BlockEntry | None:
        """Return the entry of the last recorded pass, and release it here; None if none was recorded."""
        seen, self._seen = self._seen, None
        return seen

    def remove(self) -> None:
        """Record no further pass."""
        self._hook.remove()

    def _enter(self, block: nn.Module, arguments: tuple[Any, ...], keywords: Keywords) -> None:
        if self._recording:
            tokens_BTD: Tensor = arguments[0]
            self._seen = BlockEntry(tokens_BTD.detach(), keywords.get("position_embeddings"), self.number)
