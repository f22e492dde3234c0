"""What a user sees of a stored lattice."""

from __future__ import annotations

from typing import Any

from ray_sched.errors import BadMessageError
from ray_sched.kvs.lattices import (
    LWW,
    Lattice,
    MultiCausal,
    OrderedSetLattice,
    Priority,
    SetLattice,
    SingleCausal,
    type_name,
)
from ray_sched.values import loads


def stored_value(lattice: Lattice) -> bytes:
    """The bytes of a lattice that stands for one value; the first of several concurrent ones.

    Raises BadMessageError for a set.
    """
    if isinstance(lattice, (LWW, Priority)):
        return lattice.value
    if isinstance(lattice, (SingleCausal, MultiCausal)) and lattice.values:
        return min(lattice.values)
    raise BadMessageError(f"a {type_name(lattice.type)} lattice does not hold one value")


def revealed(lattice: Lattice, deserialize: bool) -> Any:
    """The object in a lattice, or its raw bytes; for the two kinds of set a list of them.

    Raises BadMessageError when a value does not load.
    """
    if isinstance(lattice, (SetLattice, OrderedSetLattice)):
        return [loads(value) if deserialize else value for value in sorted(lattice.values)]
    value = stored_value(lattice)
    return loads(value) if deserialize else value


def clock_of(lattice: Lattice) -> dict[str, int]:
    """The vector clock of a causal lattice; empty for any other."""
    return dict(lattice.vector_clock) if isinstance(lattice, (SingleCausal, MultiCausal)) else {}
