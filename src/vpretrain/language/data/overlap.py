"""Find near-duplicates of known texts: candidates by MinHash LSH, checked by the Jaccard similarity of word n-grams.

Shapes: W words, G distinct n-grams.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vpretrain.errors import UserError

try:
    from datasketch import MinHash, MinHashLSH
except ImportError:
    raise UserError('decontamination needs a package: pip install "vpretrain[decontaminate]"') from None

_RECALL = 0.9995  # of candidates at the threshold itself; higher above it
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # kana and Han: without spaces, so each character is a word
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product modulo 2^64 loses nothing


def ngrams(text: str, n: int) -> NDArray[np.uint64]:
    """The distinct word n-grams of a text as sorted 64-bit hashes [G], without regard to case and punctuation.

    A text of fewer than n words is one n-gram; a text without words has none.
    """
    words = _WORD.findall(text.casefold())
    if not words:
        return np.empty(0, np.uint64)
    hashes_W = np.fromiter(map(_hash, words), np.uint64, len(words))
    n = min(n, len(words))
    rolled = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        rolled = rolled * _BASE + hashes_W[i : i + len(rolled)]
    return np.unique(rolled)


def jaccard(a_G: NDArray[np.uint64], b_G: NDArray[np.uint64]) -> float:
    """The Jaccard similarity of two sets of n-grams; exact, except where two n-grams have the same 64-bit hash."""
    shared = len(np.intersect1d(a_G, b_G, assume_unique=True))
    return shared / max(1, len(a_G) + len(b_G) - shared)


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Bands and rows of the LSH: a pair of similarity J becomes a candidate with probability 1 - (1 - J^rows)^bands."""
    rows = 4 if threshold >= 0.6 else 2  # fewer rows need fewer bands, but give more candidates
    return math.ceil(math.log(1 - _RECALL) / math.log(1 - min(threshold, 0.999) ** rows)), rows


class OverlapIndex:
    """An index of known texts that finds near-duplicates of them. Its size grows with the known texts only.

    Args:
        n: words per n-gram.
        threshold: the lowest Jaccard similarity of a near-duplicate.
    """

    def __init__(self, n: int, threshold: float) -> None:
        self.n, self.threshold = n, threshold
        self._known: list[NDArray[np.uint64]] = []
        bands, rows = bands_and_rows(threshold)
        self._permutations = bands * rows
        self._lsh = MinHashLSH(num_perm=self._permutations, params=(bands, rows))
        self._sizes = (0, 0)  # of the smallest and the largest set of n-grams
        self._all: NDArray[np.uint64] | None = None  # n-grams of all known texts, sorted

    def add(self, text: str) -> int:
        """Add a text; return its number, from 0."""
        grams_G = ngrams(text, self.n)
        number = len(self._known)
        self._known.append(grams_G)
        self._all = None
        if len(grams_G):
            self._lsh.insert(number, self._sketch(grams_G))
            low, high = self._sizes
            self._sizes = (min(low or len(grams_G), len(grams_G)), max(high, len(grams_G)))
        return number

    def nearest(self, text: str) -> tuple[float, int] | None:
        """The similarity and the number of the most similar known text; None if that is below the threshold."""
        grams_G = ngrams(text, self.n)
        if not self._possible(grams_G):
            return None
        candidates = self._lsh.query(self._sketch(grams_G))
        found = max(((jaccard(grams_G, self._known[number]), number) for number in candidates), default=(0.0, 0))
        return found if found[0] >= self.threshold else None

    def _possible(self, grams_G: NDArray[np.uint64]) -> bool:
        """Whether any J can reach the threshold: it is at most the ratio of the sizes, and the fraction of n-grams that occur
        in any known text. This saves the sketch, the most expensive part, for nearly all texts, and loses no duplicate."""
        low, high = self._sizes
        if not len(grams_G) or not low * self.threshold <= len(grams_G) <= high / self.threshold:
            return False
        if self._all is None:
            self._all = np.unique(np.concatenate(self._known))
        places = np.minimum(np.searchsorted(self._all, grams_G), len(self._all) - 1)
        return bool(np.count_nonzero(self._all[places] == grams_G) >= self.threshold * len(grams_G))

    def _sketch(self, grams_G: NDArray[np.uint64]) -> MinHash:
        sketch = MinHash(num_perm=self._permutations, hashfunc=int)
        sketch.update_batch((grams_G >> np.uint64(32)).tolist())
        return sketch


@lru_cache(maxsize=2**18)
def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
