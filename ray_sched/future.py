"""The result of a call: in the key-value store once it is there, or pushed straight to the caller."""

from __future__ import annotations

import concurrent.futures
import time
import weakref
from typing import Any, Final

from ray_sched.errors import BadMessageError, TimedOutError, failed, why_command
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import (
    LWW,
    Lattice,
    MultiCausal,
    OrderedSetLattice,
    Priority,
    SetLattice,
    SingleCausal,
)
from ray_sched.last_resort import is_last_resort
from ray_sched.reference import CloudburstReference
from ray_sched.responses import PendingResponse
from ray_sched.values import as_error, loads

FIRST_PAUSE_S: Final = 0.0005
LONGEST_PAUSE_S: Final = 0.02
LOOK_S: Final = 1.0
"""Between two looks for the error value of a direct response; the first comes so long after the call, and
at once where the call is older: who waits for many lost ones does not wait so long for each."""


class Future:
    """The result of a call, which may not be there yet. As an argument of another call it is a reference."""

    def __init__(
        self, what: str, id: str, kvs: KvsClient, pending: PendingResponse | None, host: str = ""
    ) -> None:
        """`host` is the scheduler's, for what errors advise."""
        self._what = what
        self._why = why_command(id, host)
        self.id = id
        """The call's id."""
        self.key = None if pending else id
        """Where the result is stored; None for a direct response."""
        self._kvs = kvs
        self._pending = pending
        self._found: Lattice | bytes | None = None
        self._look_at = time.monotonic() + LOOK_S
        if pending is not None:
            weakref.finalize(self, pending.abandon).atexit = False

    def get(self, timeout_s: float = 60.0) -> Any:
        """The result, waited for up to `timeout_s` seconds; after a time-out it may be asked for again.

        Raises:
            ExecutionError: the function raised; the message has its error.
            FunctionNotFoundError, NoResourcesError, ...: why it could not run (any RefusedError).
            TimedOutError: there is no result yet.
            BadMessageError: the result cannot be read here.
            KvsError, NotRunningError: the client was closed.
        """
        if timeout_s is None:
            raise BadMessageError("timeout_s is None: give a number of seconds, since every wait has an end")
        if self._found is None:
            self._found = self._await_direct(timeout_s) if self._pending else self._await_stored(timeout_s)
        try:
            result = loads(self._found) if isinstance(self._found, bytes) else object_in(self._found)
        except BadMessageError as error:
            raise BadMessageError(f"the result of {self._what} cannot be read: {error}") from error
        failure = as_error(result)
        if failure is not None:
            raise failed(self._what, failure, self._why)
        return result

    def done(self, timeout_s: float = 1.0) -> bool:
        """Whether the result, or an error in its place, is there; for a stored one one look at the store."""
        if self._found is None:
            if self._pending is not None:
                return self._pending.done()
            self._found = self._look(timeout_s)
        return self._found is not None

    def reference(self) -> CloudburstReference:
        """What stands for the result among the arguments of another call. Raises BadMessageError."""
        if self.key is None:
            raise BadMessageError(
                f"{self!r} has a direct response, and so no key to refer to: pass its value"
            )
        return CloudburstReference(self.key)

    def __repr__(self) -> str:
        return f"Future({self._what}, id={self.id!r})"

    def _await_direct(self, timeout_s: float) -> Lattice | bytes:
        """The response; or the error that stands at the call's id when it was lost on its way."""
        assert self._pending is not None
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            left_s = deadline - now
            try:
                return self._pending.result(max(0.0, min(left_s, self._look_at - now)))
            except concurrent.futures.TimeoutError:
                found = self._look(max(0.0, min(left_s, LOOK_S)))
                self._look_at = time.monotonic() + LOOK_S
            if found is not None and is_last_resort(found) and self._pending.cancel():
                return found
            if left_s <= 0:
                raise self._timed_out(timeout_s, "has come")

    def _await_stored(self, timeout_s: float) -> Lattice:
        deadline = time.monotonic() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            found = self._look(max(0.0, deadline - time.monotonic()))
            if found is not None:
                return found
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._timed_out(timeout_s, f"is at key {self.key!r}")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def _look(self, timeout_s: float) -> Lattice | None:
        asked = self._kvs.get_future(self.id)
        try:
            return asked.result(timeout_s)
        except (concurrent.futures.TimeoutError, TimedOutError):  # how long to try is the caller's affair
            asked.cancel()
            return None

    def _timed_out(self, timeout_s: float, state: str) -> TimedOutError:
        return TimedOutError(
            f"no result of {self._what} {state} within {timeout_s:g} s: wait longer, or see what "
            f"became of it: {self._why}"
        )


def object_in(lattice: Lattice) -> Any:
    """The object that a key holds; a list of the members where it is a set, as legacy writers store lists.

    Of concurrent causal writes the first in byte order. Raises BadMessageError.
    """
    if isinstance(lattice, (SetLattice, OrderedSetLattice)):
        return [loads(member) for member in sorted(lattice.values)]
    if isinstance(lattice, (LWW, Priority)):
        return loads(lattice.value)
    if isinstance(lattice, (SingleCausal, MultiCausal)) and lattice.values:
        return loads(min(lattice.values))
    raise BadMessageError(f"a {type(lattice).__name__} without a value")
