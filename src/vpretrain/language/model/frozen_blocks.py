"""The blocks below S, which nothing in a meta step changes: they run once for a batch, whatever it is evaluated at."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vpretrain.errors import UserError
from vpretrain.method.subset import blocks_of


class FrozenBlocksCache:
    """What the blocks below S make of one batch: recorded in the first pass, replayed in those after it.

    The model runs through its own code every time, with positions and masks as it likes them; only these blocks do nothing.

    Args:
        blocks: from the first one up to S.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.output: Any = None

    @classmethod
    def below(cls, module: nn.Module, names: Iterable[str]) -> FrozenBlocksCache | None:
        """For S of these parameters; None if it reaches down to the first block or out of the blocks."""
        try:
            prefix, blocks = blocks_of(module)
        except UserError:
            return None
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names]
        first = min(int(match[1]) if match else 0 for match in found)
        return cls(list(blocks)[:first]) if first else None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Around a pass of the model over the batch."""
        with self._record() if self.output is None else self._replay():
            yield

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        def keep(block: nn.Module, arguments: Any, output: Any) -> None:
            self.output = tree_map_only(Tensor, Tensor.detach, output)

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _replay(self) -> Iterator[None]:
        # An instance's own `forward` goes before its class's; other libraries may have set one as well.
        own = [vars(block).get("forward") for block in self.blocks]
        for block in self.blocks:
            vars(block)["forward"] = lambda *arguments, **keywords: self.output
        try:
            yield
        finally:
            for block, forward in zip(self.blocks, own, strict=True):
                del vars(block)["forward"]
                if forward is not None:
                    vars(block)["forward"] = forward
