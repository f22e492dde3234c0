"""Calls by Python programs through the Scheduler's handle: arguments to values, and the wait for results.

A result is not unpickled here: it travels to the caller as a `RemoteValue`, which turns into the
object where Ray hands it over.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ray_sched import values
from ray_sched.config import Config
from ray_sched.core.results import error_in
from ray_sched.errors import KeyMissingError, RaySchedError, TimedOutError, failed, why_command
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, Lattice, MultiCausal, SingleCausal
from ray_sched.messages import build_call, build_dag_call, check_name
from ray_sched.responses import ResponsePool
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import parse
from ray_sched.wire.curve import Keys

FIRST_PAUSE_S: Final = 0.0005
LONGEST_PAUSE_S: Final = 0.02

Place = Callable[[cb.FunctionCall | cb.DagCall, Callable[[BaseException], None]], str]
"""Dispatches a call and sends it, and returns its id; whatever goes wrong with sending comes to the second
argument."""


class RemoteValue:
    """A serialized value that becomes its object where it is unpickled, and nowhere before."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return values.loads, (self._raw,)


class PythonCalls:
    def __init__(self, config: Config, kvs: KvsClient, place: Place) -> None:
        self._host = config.host
        self._timeout_s = config.scheduler.result_timeout_s
        self._kvs = kvs
        self._place = place
        self._responses = ResponsePool(config.host, keys=Keys.of_group(config.security.curve))

    def call(self, name: str, args: Sequence[Any], timeout_s: float | None) -> RemoteValue:
        """One function's result.

        Raises NoResourcesError, ExecutionError, FunctionNotFoundError, TimedOutError.
        """
        patience_s = self._timeout_s if timeout_s is None else timeout_s
        key = str(uuid.uuid4())
        call = build_call(name, args, response_key=key)
        failures: list[BaseException] = []
        self._place(call, failures.append)
        deadline = time.monotonic() + patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            lattice = self._kvs.get(key)
            if lattice is not None:
                return result_of(payload_of(lattice), f"function {name!r}", why_command(key, self._host))
            if failures:
                raise failures[0]
            if time.monotonic() >= deadline:
                raise timed_out(f"function {name!r}", patience_s, why_command(key, self._host))
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def call_dag(self, name: str, args: Mapping[str, Sequence[Any]], timeout_s: float | None) -> RemoteValue:
        """A DAG's result. Raises NoSuchDagError, NoResourcesError, ExecutionError, TimedOutError."""
        patience_s = self._timeout_s if timeout_s is None else timeout_s
        response = self._responses.lease()
        try:
            call = build_dag_call(name, args, response_address=response.address)
            why = why_command(self._place(call, response.fail), self._host)
            try:
                raw = response.wait(patience_s)
            except TimedOutError as error:
                raise timed_out(f"DAG {name!r}", patience_s, why) from error
            return result_of(raw, f"DAG {name!r}", why)
        except BaseException:
            response.cancel()
            raise

    def get(self, key: str) -> RemoteValue:
        """A key's value. Raises KeyMissingError, BadMessageError, KvsError, TimedOutError."""
        check_name("a key", key)
        lattice = self._kvs.get(key)
        if lattice is None:
            raise KeyMissingError(f"the key-value store has no key {key!r}")
        return RemoteValue(payload_of(lattice))

    def put(self, key: str, value: Any) -> None:
        check_name("a key", key)
        self._kvs.put_bytes(key, values.dumps(value))

    def close(self) -> None:
        self._responses.close()


def payload_of(lattice: Lattice) -> bytes:
    """The one value that readers of a key see; of concurrent writes the first."""
    if isinstance(lattice, LWW):
        return lattice.value
    if isinstance(lattice, SingleCausal | MultiCausal):
        return min(lattice.values)
    raise RaySchedError(
        f"a {type(lattice).__name__} is no single value: read it through the key-value store's client"
    )


def timed_out(what: str, patience_s: float, why: str) -> TimedOutError:
    return TimedOutError(f"no result of {what} within {patience_s:g} s: see what became of it: {why}")


def result_of(raw: bytes, what: str, why: str) -> RemoteValue:
    """The result of a call of `what`. Raises the exception that an error value stands for, with `why` as the
    command that tells where it was raised."""
    error = error_in(parse(cb.Value, raw))
    if error is not None:
        raise failed(what, error, why)
    return RemoteValue(raw)
