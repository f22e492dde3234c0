"""How long functions run, and which keys calls read."""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable
from typing import Final


def _constant(mean_s: float, variation: float, rng: random.Random) -> float:
    return mean_s


def _exponential(mean_s: float, variation: float, rng: random.Random) -> float:
    return rng.expovariate(1 / mean_s)


def _lognormal(mean_s: float, variation: float, rng: random.Random) -> float:
    sigma2 = math.log(1 + variation**2)
    return rng.lognormvariate(math.log(mean_s) - sigma2 / 2, math.sqrt(sigma2))


DISTRIBUTIONS: Final[dict[str, Callable[[float, float, random.Random], float]]] = {
    "constant": _constant,
    "exponential": _exponential,
    "lognormal": _lognormal,
}
"""By name: from mean (seconds) and coefficient of variation to one service time (seconds)."""


class ZipfKeys:
    """Keys of which the k-th most popular is read in proportion to 1 / k ** skew; 0: all alike."""

    def __init__(self, count: int, skew: float) -> None:
        self._sums = list(itertools.accumulate(1 / rank**skew for rank in range(1, count + 1)))

    def draw(self, count: int, rng: random.Random) -> tuple[str, ...]:
        """The keys of so many draws; one that is drawn twice is read once."""
        last = len(self._sums) - 1
        ranks = (bisect_right(self._sums, rng.random() * self._sums[-1], hi=last) for _ in range(count))
        return tuple(dict.fromkeys(f"key-{rank}" for rank in ranks))
