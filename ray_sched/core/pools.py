"""Candidate sets that are kept up to date, so that a pick never scans or copies them.

A pool holds the executors that may take a function (or, for one-shot calls and pins, the free
ones). It keeps them in two parts, available and overloaded, and the available ones by IP address
as well. Adding, removing, moving and picking one cost the same however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class IndexedSet(Generic[T]):
    """A set whose members have positions, so that a random one costs one index look-up."""

    __slots__ = ("_position", "items")

    def __init__(self) -> None:
        self.items: list[T] = []
        """The members by position, to be read alone."""
        self._position: dict[T, int] = {}

    def add(self, item: T) -> None:
        if item not in self._position:
            self._position[item] = len(self.items)
            self.items.append(item)

    def discard(self, item: T) -> None:
        position = self._position.pop(item, None)
        if position is None:
            return
        last = self.items.pop()
        if position < len(self.items):  # the last one takes the place that became empty
            self.items[position] = last
            self._position[last] = position

    def __getitem__(self, position: int) -> T:
        return self.items[position]

    def __contains__(self, item: T) -> bool:
        return item in self._position

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


class Candidate(Protocol):
    """What a pool needs to know of an executor."""

    @property
    def ip(self) -> str: ...

    @property
    def overloaded(self) -> bool: ...


C = TypeVar("C", bound=Candidate)


class Pool(Generic[C]):
    """The candidates for one purpose. Positions count the available ones first, then the overloaded."""

    __slots__ = ("available", "by_ip", "cursor", "overloaded", "sizes")

    def __init__(self) -> None:
        self.available: IndexedSet[C] = IndexedSet()
        self.overloaded: IndexedSet[C] = IndexedSet()
        self.by_ip: dict[str, IndexedSet[C]] = {}
        self.sizes = (0, 0)
        """How many are available, and how many overloaded: ready made, as each pick is remembered with it."""
        self.cursor = 0
        """Where round-robin goes on."""

    def add(self, executor: C) -> None:
        """Put the executor where its state says; one that is in the other part moves."""
        if executor.overloaded:
            self._leave_available(executor)
            self.overloaded.add(executor)
        else:
            self.overloaded.discard(executor)
            self.available.add(executor)
            if executor.ip not in self.by_ip:
                self.by_ip[executor.ip] = IndexedSet()
            self.by_ip[executor.ip].add(executor)
        self._count()

    def discard(self, executor: C) -> None:
        self._leave_available(executor)
        self.overloaded.discard(executor)
        self._count()

    def _count(self) -> None:
        self.sizes = len(self.available), len(self.overloaded)

    def _leave_available(self, executor: C) -> None:
        self.available.discard(executor)
        neighbours = self.by_ip.get(executor.ip)
        if neighbours is not None:
            neighbours.discard(executor)
            if not neighbours:
                del self.by_ip[executor.ip]

    def at(self, position: int) -> C:
        """The candidate at a position below `len(self)`."""
        items = self.available.items
        ready = len(items)
        return items[position] if position < ready else self.overloaded.items[position - ready]

    def __contains__(self, executor: C) -> bool:
        return executor in self.available or executor in self.overloaded

    def __len__(self) -> int:
        return len(self.available) + len(self.overloaded)

    def __iter__(self) -> Iterator[C]:
        yield from self.available
        yield from self.overloaded
