"""Share the passes that a meta update and the learner's own step have in common. Shapes: B rows, T tokens per row, D width."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vpretrain import distributed
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.frozen_blocks import FrozenBlocksCache
from vpretrain.language.model.loss import at_least_fp32
from vpretrain.method.subset import blocks_of
from vpretrain.timing import phase

if TYPE_CHECKING:
    from vpretrain.language.model.learner import LanguageLearner, LanguageState


@dataclass(frozen=True)
class PreparedBatch(TokenBatch):
    """Rows of a meta step, with a cache of the output of the blocks below S."""

    cache: FrozenBlocksCache | None = None


@dataclass(frozen=True)
class _Ahead:
    """A pass over a batch, made ahead: the versions of theta, its state if a step takes it, and the lower blocks' output."""

    batch: TokenBatch
    versions: tuple[int, ...]
    state: LanguageState | None
    below: object


class SharedPass:
    """The caches of a learner's passes.

    The blocks below S give the same output in all passes of a meta step: the first pass over a prepared batch records it, and
    the others replay it. The learner's own pass over the coming batch does not depend on the task either: it is made as soon as
    a part of that batch is prepared, provides that part's states below S, and is kept until the step takes it.

    Args:
        learner: the learner whose passes are shared.

    Attributes:
        taken: whether the step's own pass is over the coming batch itself. If not, the pass ahead has neither graph nor logits,
            and does not outlast the meta update.
    """

    def __init__(self, learner: LanguageLearner) -> None:
        self._learner = learner
        self.taken = True
        self._coming: TokenBatch | None = None
        self._ahead: _Ahead | None = None
        self._is_cacheable: dict[int, bool] = {}  # by the number of blocks below S

    @contextlib.contextmanager
    def looking_ahead(self, batch: TokenBatch) -> Iterator[None]:
        """Share passes between the meta update in this context and the step after it, which begins with this batch.

        Nothing is made ahead under dropout or activation checkpointing, which a meta step runs without, or with sharded
        parameters. A pass made ahead is never compiled.
        """
        modules = self._learner.module.modules()
        checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in modules)
        allowed = self._learner.theta.looks_ahead and not checkpointing and self.draws_nothing
        self._ahead, self._coming = None, batch if allowed else None
        try:
            yield
        finally:
            self._coming = None
            if not self.taken:
                self._ahead = None

    def prepared(self, inputs: TokenBatch, names: Iterable[str]) -> TokenBatch:
        """Return the same rows with a cache of the blocks below S, filled if the pass over the coming batch contains them.

        Args:
            inputs: rows of a meta step.
            names: the parameters in S.
        """
        if isinstance(inputs, PreparedBatch):
            return inputs
        cache = FrozenBlocksCache.below(self._learner.module, names)
        if cache is None or not self._can_cache(len(cache.blocks)):
            return inputs
        cache.output = self._from_own_pass(inputs, cache)
        return PreparedBatch(**vars(inputs), cache=cache)

    def take(self, inputs: TokenBatch) -> LanguageState | None:
        """Return the state of the own pass if it was made ahead, over these inputs and by this theta, else None. Only once."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.batch is not inputs or not torch.is_grad_enabled():
            return None
        return ahead.state if ahead.versions == self._versions() else None

    def _from_own_pass(self, inputs: TokenBatch, cache: FrozenBlocksCache) -> Float[Tensor, "B T D"] | None:
        """The output of the lower blocks for a part of the coming batch; None if the learner's own pass does not provide it."""
        if self._coming is None:
            return None
        rows = _rows_in(self._coming, inputs)
        # Of several processes all make the pass, or none: DDP's second one communicates, before the gradients of a meta update.
        if rows is None and distributed.size() == 1:
            return None
        if self._ahead is None:
            whole = FrozenBlocksCache(cache.blocks)
            coming = PreparedBatch(**vars(self._coming), cache=whole)
            state: LanguageState | None = None
            with phase("learner forward"), torch.set_grad_enabled(self.taken):
                if self.taken:
                    state = self._learner.own_pass(coming)
                else:
                    self._learner.run_body(coming)
            self._ahead = _Ahead(self._coming, self._versions(), state, whole.output)
        if rows is None or not isinstance(self._ahead.below, Tensor):
            return None
        # bf16 if the own pass was under autocast, but values and tangents are fp32.
        return at_least_fp32(self._ahead.below[rows, : inputs.ids_BT.shape[1]])

    def _versions(self) -> tuple[int, ...]:
        """The version counters of the parameters, which change whenever theta does."""
        return tuple(p._version for p in self._learner.module.parameters())

    def _can_cache(self, count: int) -> bool:
        """Whether the first `count` blocks affect those above only by the last one's output (not by shared keys, say)."""
        if count not in self._is_cacheable:
            module = self._learner.module
            cache = FrozenBlocksCache(list(blocks_of(module)[1])[:count])
            states = []
            with self._learner.meta_mode(), torch.no_grad():
                for _ in range(2):
                    with cache.used():
                        states.append(module(*module.sample(), None)[0])
            self._is_cacheable[count] = torch.allclose(states[0], states[1], rtol=1e-4, atol=1e-5)
        return self._is_cacheable[count]

    @functools.cached_property
    def draws_nothing(self) -> bool:
        """Whether training draws no random numbers. (Outputs would not show it: dropout on new adapters changes none.)"""
        module, device = self._learner.module, self._learner.device
        devices = {"cpu": [], "cuda": [device]}.get(device.type)
        if devices is None:
            return False  # the generator of another kind of device cannot be compared here
        training = module.training
        with torch.random.fork_rng(devices), torch.no_grad():
            before = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
            module.train()(*module.sample(), None)
            after = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        module.train(training)
        return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _rows_in(whole: TokenBatch, part: TokenBatch) -> list[int] | None:
    """Indices of the rows of `whole` that begin like the rows of `part`; None if one is missing."""
    length = part.ids_BT.shape[1]
    if length > whole.ids_BT.shape[1]:
        return None
    same_PBT = part.ids_BT[:, None] == whole.ids_BT[None, :, :length]
    same_PBT &= part.positions_BT[:, None] == whole.positions_BT[None, :, :length]
    same_PB = same_PBT.all(dim=-1)
    if not bool(same_PB.any(dim=1).all()):
        return None
    return same_PB.int().argmax(dim=1).tolist()
