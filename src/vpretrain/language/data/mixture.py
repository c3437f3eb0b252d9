"""Pairs of several sources by weight, for training by a library's own loop, and what of the sources is not used."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data.draws import Draws
from vpretrain.language.data.example import Example
from vpretrain.language.data.stream import HOPELESS
from vpretrain.run.left_out import LeftOut, by_source, listed
from vpretrain.run.skipped import UNREADABLE, entries
from vpretrain.types import Json


class Mixture:
    """Usable pairs of the sources by weight, endlessly, each epoch in a new order.

    A trainer starts to read several times, and reads ahead of what it trains on. So what is met without being used counts
    only once the pair after it was trained on: then the counts depend on the number of steps alone, also after a resume.

    Args:
        sources: pairs, each with its weight.
        skips: says whether pairs that cannot be read are skipped, and how many may be.
        seed: order of the pairs and choice of the sources.
        unused: why a pair is not used; empty if it is.
    """

    def __init__(
        self, sources: Sequence[SourceConfig], skips: StreamConfig, *, seed: int, unused: Callable[[Example], str]
    ) -> None:
        self.sources, self.skips, self.seed, self.unused = sources, skips, seed, unused
        self._read: list[_Read] = []

    def pairs(self, start: int = 0) -> Iterator[Example]:
        """Yield the pairs from number `start` on; those before it were trained on. What was counted is counted anew.

        Raises:
            UserError: a source has no usable pairs.
            Unreadable, TooManySkipped: as `Skipped.met`.
        """
        read = [
            _Read(Draws(source, self.skips, f"{self.seed}/{i}"), self.unused) for i, source in enumerate(self.sources)
        ]
        self._read = read
        draw, weights = random.Random(f"{self.seed}/direct"), [source.weight for source in self.sources]
        for number in itertools.count(1):
            pair = draw.choices(read, weights)[0].next(number)
            if number > start:
                yield pair
            else:
                self.trained(number)

    def trained(self, pairs: int) -> None:
        """Count what came before the pair of this number, from 1: all pairs up to it were trained on."""
        for read in self._read:
            read.count(pairs)

    def left_out(self) -> LeftOut:
        """How many pairs were met and not used, by origin and reason."""
        return by_source((read.origin, read.left_out) for read in self._read)

    def skipped(self) -> list[Json]:
        """List the pairs that could not be read, see `run.skipped`."""
        named = [{"skipped": {"named": read.named}} for read in self._read]
        return entries([read.origin for read in self._read], {"0": named})


class _Read:
    """One reading of a source."""

    def __init__(self, draws: Draws, unused: Callable[[Example], str]) -> None:
        self.left_out: Counter[str] = Counter()  # by reason
        self._draws, self._unused = draws, unused
        self._names = 0  # how many of the draws' names count
        self._ahead: deque[tuple[int, str, int]] = deque()  # what does not count yet: number, reason, names until then

    @property
    def origin(self) -> str:
        return self._draws.skipped.origin

    @property
    def named(self) -> list[tuple[str, str]]:
        return self._draws.skipped.named[: self._names]

    def next(self, number: int) -> Example:
        """The next usable pair, which has this number among those of all sources."""
        for _ in range(HOPELESS):
            pair = self._draws.next()
            reason = UNREADABLE if pair is None else self._unused(pair)
            if pair is not None and not reason:
                return pair
            self._ahead.append((number, reason, len(self._draws.skipped.named)))
        reasons = Counter(reason for _, reason, _ in self._ahead)
        raise UserError(f"{self.origin}: {HOPELESS} pairs in a row cannot be trained on: {listed(reasons)}")

    def count(self, pairs: int) -> None:
        """See `Mixture.trained`."""
        while self._ahead and self._ahead[0][0] <= pairs:
            _, reason, self._names = self._ahead.popleft()
            self.left_out[reason] += 1
