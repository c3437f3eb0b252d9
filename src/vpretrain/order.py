"""The order in which examples are drawn: a function of a seed and a counter, so that a cursor is a number."""

from __future__ import annotations

import random


class Shuffled:
    """Endless permutations of range(n), one per epoch; the i-th draw depends on the seed alone."""

    def __init__(self, n: int, seed: str) -> None:
        self._n, self._seed = n, seed
        self._epoch, self._order = -1, list(range(n))

    def __getitem__(self, drawn: int) -> int:
        epoch, index = divmod(drawn, self._n)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(self._n))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        return self._order[index]
