"""Where the result of a call has to go."""

from __future__ import annotations

from typing import NamedTuple

from ray_sched.wire import cloudburst_pb2 as cb


class Destination(NamedTuple):
    """A whole ZeroMQ address, or, where that is empty, a key of the key-value store."""

    call_id: str
    address: str
    key: str
    causal: bool
    writer: str
    """Whose write it is, in the vector clock of a causal result."""
    speculative: bool
    """Whether the call may have its result without every one of its functions, as with MULTIEXEC."""

    @classmethod
    def of_call(cls, call: cb.FunctionCall, response_id: str = "") -> Destination:
        """A one-shot call's result goes to its response key; to `response_id` where the caller named none."""
        return cls(*of_one_shot(call, response_id))

    @classmethod
    def of_result(cls, schedule: cb.DagSchedule) -> Destination:
        """Where the sink sends the result of a call that has no continuation."""
        return cls(
            schedule.id,
            schedule.response_address,
            schedule.output_key or schedule.id,
            schedule.consistency != cb.NORMAL,
            schedule.client_id or "base",
            any(function.type == cb.MULTIEXEC for function in schedule.dag.functions),
        )

    @classmethod
    def of_error(cls, schedule: cb.DagSchedule) -> Destination:
        """Where the caller waits for the result.

        That is where the last of the continuations would send it. If it names no place, the
        call's own address or key counts.
        """
        return cls.of_result(schedule)._continued(schedule.continuation)

    @classmethod
    def of_dag_call(cls, call: cb.DagCall, response_id: str) -> Destination:
        """As `of_error`, for the call as the client made it and the id that it was answered with."""
        return cls(*without_continuation(call, response_id))._continued(call.continuation)

    def _continued(self, continuation: cb.Continuation) -> Destination:
        if not continuation.name:
            return self
        last = _last_call(continuation)
        if last.response_address:
            return self._replace(address=last.response_address)
        if last.output_key:
            return self._replace(address="", key=last.output_key)
        return self

    @classmethod
    def of_continuation(cls, continuation: cb.Continuation) -> Destination:
        """Where the caller of a continuation waits for the result, should its DAG not be called."""
        last = _last_call(continuation)
        return cls(
            continuation.id,
            last.response_address,
            last.output_key or continuation.id,
            last.consistency != cb.NORMAL,
            last.client_id or "base",
            False,
        )


Plain = tuple[str, str, str, bool, str, bool]
"""A `Destination` as a bare tuple, which takes a tenth of the time to make: each call has one noted."""


def of_one_shot(call: cb.FunctionCall, response_id: str) -> Plain:
    """As `Destination.of_call`."""
    key = call.response_key or response_id
    return key, "", key, call.consistency != cb.NORMAL, "base", False


def without_continuation(call: cb.DagCall, response_id: str) -> Plain:
    """As `Destination.of_dag_call`, of a call that has none."""
    return (
        response_id,
        call.response_address,
        response_id,
        call.consistency != cb.NORMAL,
        call.client_id or "base",
        False,
    )


def _last_call(continuation: cb.Continuation) -> cb.DagCall:
    while continuation.call.continuation.name:
        continuation = continuation.call.continuation
    return continuation.call
