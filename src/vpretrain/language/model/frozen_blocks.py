"""A cache for the blocks below S: no meta step changes them, so they run once per batch, whatever the values of theta_S."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vpretrain.errors import UserError
from vpretrain.method.subset import blocks_of


class FrozenBlocksCache:
    """The output of the blocks below S for one batch: recorded in the first pass, replayed in later ones.

    The model's own code runs every time, with its own positions and masks; only these blocks return the recorded output.

    Args:
        blocks: those below S, from the first on.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.output: object = None

    @classmethod
    def below(cls, module: nn.Module, names: Iterable[str]) -> FrozenBlocksCache | None:
        """Return a cache for S = these parameters; None if S includes the first block or parameters outside the blocks."""
        try:
            prefix, blocks = blocks_of(module)
        except UserError:
            return None
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names]
        first = min(int(match[1]) if match else 0 for match in found)
        return cls(list(blocks)[:first]) if first else None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Wrap a pass of the model over the batch: the first is recorded, later ones replay it."""
        with self._record() if self.output is None else self._replay():
            yield

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        def keep(block: nn.Module, arguments: object, output: object) -> None:
            self.output = tree_map_only(Tensor, Tensor.detach, output)

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _replay(self) -> Iterator[None]:
        # A `forward` on the instance takes precedence over the class's. Another library may have set one: restore it after.
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
