"""Vector clocks, and the versions that they order.

A clock says for each writer how many of its writes a version has seen. A version whose clock
dominates another's has seen it and replaces it; two versions of which neither dominates the other
are concurrent, and both are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class FrozenMap(Mapping[K, V]):
    """A mapping that never changes: hashable, and equal to any mapping with the same items."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return self._items == (other._items if isinstance(other, FrozenMap) else other)

    def __repr__(self) -> str:
        return repr(self._items)


class VectorClock(FrozenMap[str, int]):
    """Counters by writer; a writer that is missing counts as zero, so zeros are left out."""

    __slots__ = ()

    def __init__(self, counters: Mapping[str, int]) -> None:
        super().__init__({writer: counter for writer, counter in counters.items() if counter})

    def merge(self, other: VectorClock) -> VectorClock:
        """The least clock that has seen what either has."""
        return VectorClock(
            {writer: max(self.get(writer, 0), other.get(writer, 0)) for writer in {*self, *other}}
        )

    def dominates(self, other: VectorClock) -> bool:
        """Whether this clock has seen all that `other` has, and more."""
        return self != other and all(self.get(writer, 0) >= counter for writer, counter in other.items())


def unite(
    left: Mapping[VectorClock, T], right: Mapping[VectorClock, T], join: Callable[[T, T], T]
) -> FrozenMap[VectorClock, T]:
    """The versions of both that none of the others dominates; those of equal clocks are joined.

    Commutative, associative and idempotent whenever `join` is.
    """
    versions = dict(left)
    for clock, content in right.items():
        versions[clock] = join(versions[clock], content) if clock in versions else content
    return FrozenMap(
        {
            clock: content
            for clock, content in versions.items()
            if not any(other.dominates(clock) for other in versions)
        }
    )
