"""The error value of a call whose own result may never come.

Nobody may know whether the result was stored after all. So the value is written in a way that whatever
the key holds, or will ever hold, outranks it: it takes nothing back, and needs no look before.
"""

from __future__ import annotations

from typing import Final

from ray_sched.core.destination import Destination
from ray_sched.kvs.lattices import LWW, Lattice, MultiCausal
from ray_sched.values import dumps, error_value
from ray_sched.wire import cloudburst_pb2 as cb

LEAST: Final = 1
"""Below every timestamp of the wire's scale."""


def last_resort(to: Destination, reason: str) -> tuple[str, Lattice]:
    """Key and lattice. The key of a direct response is its id: at its address nobody could tell this
    from the answer to another call."""
    value = dumps(error_value(reason, cb.EXECUTION_ERROR))
    if to.causal:
        return to.key, MultiCausal({}, {}, frozenset([value]))
    return to.key, LWW(LEAST, value)


def is_last_resort(lattice: Lattice) -> bool:
    """Whether a key holds what `last_resort` wrote, and nothing else since."""
    if isinstance(lattice, LWW):
        return lattice.timestamp == LEAST
    return isinstance(lattice, MultiCausal) and not lattice.vector_clock
