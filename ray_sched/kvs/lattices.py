"""The six lattice types that Anna stores, and how two values of one type merge.

Rule 1: every merge is commutative, associative and idempotent, so that writes may arrive in any
order, and more than once, and a request that was not answered may be sent again.
Rule 2: no tie is left open: where the field's rule does not decide, the values' bytes do.
Rule 3: a lattice is a value: frozen, hashable, equal when its content is.

The wire format is that of `anna.proto`; `serialize` is deterministic.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from ray_sched.errors import BadMessageError, LatticeMismatchError
from ray_sched.kvs.vector_clock import FrozenMap, VectorClock, unite
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import shared_pb2 as shared

M = TypeVar("M", bound=Message)
L = TypeVar("L", bound="Lattice")


class Lattice(ABC):
    """A value that knows how to merge with another of its type."""

    type: ClassVar[anna.LatticeType]

    def merge(self: L, other: L) -> L:
        """The least value above both. Raises LatticeMismatchError when `other` has another type."""
        if other.type != self.type:
            raise LatticeMismatchError(
                f"a {type_name(other.type)} lattice cannot be merged into a {type_name(self.type)} lattice"
            )
        return self._join(other)

    @abstractmethod
    def _join(self: L, other: L) -> L:
        """`merge`, of the same type."""

    @abstractmethod
    def serialize(self) -> bytes:
        """The payload, as it travels in a `KeyTuple`."""

    def parts(self: L) -> tuple[L, ...]:
        """Values whose payloads lose nothing and whose merge is this one: what a file has to keep."""
        return (self,)


@dataclass(frozen=True)
class LWW(Lattice):
    """The last writer wins: the higher timestamp, and the greater value where they tie.

    The timestamp's scale is the writers' affair (`ray_sched.kvs.timestamps` has that of the wire).
    """

    timestamp: int
    value: bytes
    type: ClassVar[anna.LatticeType] = anna.LWW

    def _join(self, other: LWW) -> LWW:
        return max(self, other, key=lambda lattice: (lattice.timestamp, lattice.value))

    def serialize(self) -> bytes:
        return _bytes(anna.LWWValue(timestamp=self.timestamp, value=self.value))

    @classmethod
    def parse(cls, payload: bytes) -> LWW:
        message = _message(anna.LWWValue, payload)
        return cls(message.timestamp, message.value)


@dataclass(frozen=True)
class SetLattice(Lattice):
    """A set that only grows."""

    values: frozenset[bytes]
    type: ClassVar[anna.LatticeType] = anna.SET

    def __post_init__(self) -> None:
        _set(self, "values", frozenset(self.values))

    def _join(self, other: SetLattice) -> SetLattice:
        return SetLattice(self.values | other.values)

    def serialize(self) -> bytes:
        return _bytes(anna.SetValue(values=sorted(self.values)))

    @classmethod
    def parse(cls, payload: bytes) -> SetLattice:
        return cls(frozenset(_message(anna.SetValue, payload).values))


@dataclass(frozen=True)
class OrderedSetLattice(Lattice):
    """A set that only grows, kept in the order of its values' bytes."""

    values: tuple[bytes, ...]
    type: ClassVar[anna.LatticeType] = anna.ORDERED_SET

    def __post_init__(self) -> None:
        _set(self, "values", tuple(sorted(set(self.values))))

    def _join(self, other: OrderedSetLattice) -> OrderedSetLattice:
        return OrderedSetLattice(self.values + other.values)

    def serialize(self) -> bytes:
        return _bytes(anna.SetValue(values=self.values))

    @classmethod
    def parse(cls, payload: bytes) -> OrderedSetLattice:
        return cls(tuple(_message(anna.SetValue, payload).values))


@dataclass(frozen=True)
class SingleCausal(Lattice):
    """Concurrent versions of one key, under the clock that has seen them all.

    A version that the other's clock dominates is replaced, concurrent ones are kept side by side,
    and so are different values under one clock. What travels is one clock and all values; but to
    tell later which of the values a new version replaces, a merged lattice also remembers each
    value's own clock (`versions`). With the common clock alone the merge could not be associative.
    """

    vector_clock: Mapping[str, int]
    values: frozenset[bytes]
    versions: Mapping[VectorClock, frozenset[bytes]] = field(default_factory=dict, repr=False)
    type: ClassVar[anna.LatticeType] = anna.SINGLE_CAUSAL

    def __post_init__(self) -> None:
        clock = VectorClock(self.vector_clock)
        values = frozenset(self.values)
        _set(self, "vector_clock", clock)
        _set(self, "values", values)
        _set(self, "versions", FrozenMap(self.versions or {clock: values}))

    def _join(self, other: SingleCausal) -> SingleCausal:
        versions = unite(self.versions, other.versions, frozenset.union)
        return SingleCausal(_merged(versions), frozenset().union(*versions.values()), versions)

    def serialize(self) -> bytes:
        return _bytes(anna.SingleKeyCausalValue(vector_clock=self.vector_clock, values=sorted(self.values)))

    def parts(self) -> tuple[SingleCausal, ...]:
        return tuple(SingleCausal(clock, values) for clock, values in self.versions.items())

    @classmethod
    def parse(cls, payload: bytes) -> SingleCausal:
        message = _message(anna.SingleKeyCausalValue, payload)
        return cls(dict(message.vector_clock), frozenset(message.values))


Dependencies = Mapping[str, Mapping[str, int]]
Content = tuple[FrozenMap[str, VectorClock], frozenset[bytes]]


@dataclass(frozen=True)
class MultiCausal(Lattice):
    """As `SingleCausal`, and each version names the versions of other keys that it depends on.

    Concurrent versions unite their values, and their dependencies by merging the clocks key by key.
    """

    vector_clock: Mapping[str, int]
    dependencies: Dependencies
    values: frozenset[bytes]
    versions: Mapping[VectorClock, Content] = field(default_factory=dict, repr=False)
    type: ClassVar[anna.LatticeType] = anna.MULTI_CAUSAL

    def __post_init__(self) -> None:
        clock = VectorClock(self.vector_clock)
        dependencies = FrozenMap({key: VectorClock(seen) for key, seen in self.dependencies.items()})
        values = frozenset(self.values)
        _set(self, "vector_clock", clock)
        _set(self, "dependencies", dependencies)
        _set(self, "values", values)
        _set(self, "versions", FrozenMap(self.versions or {clock: (dependencies, values)}))

    def _join(self, other: MultiCausal) -> MultiCausal:
        versions = unite(self.versions, other.versions, _join_contents)
        dependencies: FrozenMap[str, VectorClock] = FrozenMap({})
        values: frozenset[bytes] = frozenset()
        for content in versions.values():
            dependencies, values = _join_contents((dependencies, values), content)
        return MultiCausal(_merged(versions), dependencies, values, versions)

    def serialize(self) -> bytes:
        dependencies = [
            shared.KeyVersion(key=key, vector_clock=self.dependencies[key])
            for key in sorted(self.dependencies)
        ]
        return _bytes(
            anna.MultiKeyCausalValue(
                vector_clock=self.vector_clock, dependencies=dependencies, values=sorted(self.values)
            )
        )

    def parts(self) -> tuple[MultiCausal, ...]:
        return tuple(MultiCausal(clock, *content) for clock, content in self.versions.items())

    @classmethod
    def parse(cls, payload: bytes) -> MultiCausal:
        message = _message(anna.MultiKeyCausalValue, payload)
        dependencies: dict[str, VectorClock] = {}
        for version in message.dependencies:
            seen = VectorClock(version.vector_clock)
            dependencies[version.key] = seen.merge(dependencies.get(version.key, seen))
        return cls(dict(message.vector_clock), dependencies, frozenset(message.values))


@dataclass(frozen=True)
class Priority(Lattice):
    """The lowest priority wins, and the lesser value where they tie.

    A priority that is not a number counts as infinity, since it has no place in the order.
    """

    priority: float
    value: bytes
    type: ClassVar[anna.LatticeType] = anna.PRIORITY

    def __post_init__(self) -> None:
        # Adding zero makes one of the two zeros, which are equal but differ in their bytes.
        _set(self, "priority", math.inf if math.isnan(self.priority) else float(self.priority) + 0.0)

    def _join(self, other: Priority) -> Priority:
        return min(self, other, key=lambda lattice: (lattice.priority, lattice.value))

    def serialize(self) -> bytes:
        return _bytes(anna.PriorityValue(priority=self.priority, value=self.value))

    @classmethod
    def parse(cls, payload: bytes) -> Priority:
        message = _message(anna.PriorityValue, payload)
        return cls(message.priority, message.value)


_PARSERS: Final[dict[int, Callable[[bytes], Lattice]]] = {
    LWW.type: LWW.parse,
    SetLattice.type: SetLattice.parse,
    OrderedSetLattice.type: OrderedSetLattice.parse,
    SingleCausal.type: SingleCausal.parse,
    MultiCausal.type: MultiCausal.parse,
    Priority.type: Priority.parse,
}


def parse(lattice_type: int, payload: bytes) -> Lattice:
    """The lattice that a `KeyTuple` carries.

    Raises BadMessageError when there is no such type or the payload is not one of it.
    """
    parser = _PARSERS.get(lattice_type)
    if parser is None:
        raise BadMessageError(f"there is no lattice type {type_name(lattice_type)}")
    return parser(payload)


def type_name(lattice_type: int) -> str:
    """The name in `anna.proto`, or the number where there is none."""
    known = anna.LatticeType.DESCRIPTOR.values_by_number.get(lattice_type)
    return known.name if known else str(lattice_type)


def _set(lattice: Lattice, name: str, value: object) -> None:
    object.__setattr__(lattice, name, value)


def _merged(clocks: Iterable[VectorClock]) -> VectorClock:
    merged = VectorClock({})
    for clock in clocks:
        merged = merged.merge(clock)
    return merged


def _join_contents(left: Content, right: Content) -> Content:
    dependencies = dict(left[0])
    for key, clock in right[0].items():
        dependencies[key] = clock.merge(dependencies.get(key, clock))
    return FrozenMap(dependencies), left[1] | right[1]


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _message(kind: type[M], payload: bytes) -> M:
    try:
        message = kind()
        message.ParseFromString(payload)
    except (DecodeError, ValueError) as error:
        raise BadMessageError(f"{len(payload)} bytes are not a {kind.__name__}: {error}") from error
    return message
