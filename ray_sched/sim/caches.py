"""A node's cache: bounded, the least recently used key leaves first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class Cache:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[str, None] = OrderedDict()

    def read(self, keys: Iterable[str]) -> tuple[int, int]:
        """How many of the keys were there (hits) and how many had to be fetched (misses)."""
        hits = misses = 0
        for key in keys:
            if key in self._keys:
                hits += 1
                self._keys.move_to_end(key)
            else:
                misses += 1
                self._keys[key] = None
                if len(self._keys) > self._capacity:
                    self._keys.popitem(last=False)
        return hits, misses

    def keys(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
