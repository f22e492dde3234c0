"""The hot path: a call comes in, messages to executors come out.

The same class decides for the Ingress (under its lease) and for the Scheduler (the Python API, and
what an ingress may not decide). Nothing here waits, logs or asks anybody.

Why it is fast: candidate sets are kept, not built (`pools`); a schedule's constant part is
serialized with the plan and the call's part once for all functions (`dags`); an id costs random
bits and no system call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan
from ray_sched.core.executors import Executor, ExecutorPool, ExecutorTable
from ray_sched.core.policies import Policy, Request, Rng
from ray_sched.core.references import references_of
from ray_sched.errors import BadMessageError, NoResourcesError, NoSuchDagError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import parse
from ray_sched.wire.protobuf import LENGTH_DELIMITED, LENGTHS, delimited, varint

CALL, SCHEDULE, TRIGGER = "call", "schedule", "trigger"
"""The kinds of message that a call sends, as `Layout` names their ports."""


class Dispatched(NamedTuple):
    """What a call comes to: the id for the reply, and what to send to whom, in order."""

    response_id: str
    sends: list[tuple[Executor, str, bytes]]
    """Executor, kind of message, bytes."""


LOCATION = varint(cb.DagSchedule.LOCATIONS_FIELD_NUMBER << 3 | LENGTH_DELIMITED)
NO_CONTINUATION = delimited(cb.DagSchedule.CONTINUATION_FIELD_NUMBER, b"")
"""A legacy schedule has the field always."""


def seq_at(now: float) -> int:
    """The sequence number of what happens to an executor at `now`: one order for all processes of a node."""
    return int(now * 1e9)


class Dispatcher:
    def __init__(
        self,
        table: ExecutorTable,
        plans: Mapping[str, Plan],
        policy: Policy,
        rng: Rng,
        arrivals: Arrivals,
    ) -> None:
        self._table = table
        self._plans = plans
        self._policy = policy
        self._rng = rng
        self._arrivals = arrivals

    def new_id(self) -> str:
        """A random UUID (version 4), from this dispatcher's own generator."""
        digits = f"{self._rng.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def call(self, call: cb.FunctionCall, now: float) -> Dispatched:
        """Place a one-shot call on a free executor. Raises NoResourcesError, BadMessageError.

        With `source_hint` STORAGE one on the `locations` that hold the data comes first.
        """
        if not call.name:
            raise BadMessageError("a call has to name its function")
        candidates: ExecutorPool = self._table.free[False]
        executor = None
        if call.source_hint == cb.STORAGE:
            executor = self._at_locations(candidates, call.locations)
        if executor is None:
            request = Request(call.name, references_of(call.arguments.values))
            executor = self._policy.pick(candidates, request, self._table, self._rng)
        if executor is None:
            raise NoResourcesError(f"no free executor for {call.name!r}: try again, or add executors")
        if not call.response_key:
            call.response_key = self.new_id()
        self._table.note_calls((executor,))
        self._table.book(executor, seq_at(now))
        self._arrivals.on_function(call.name)
        return Dispatched(call.response_key, [(executor, CALL, call.SerializeToString())])

    def call_dag(self, call: cb.DagCall, now: float, unix_s: float, call_id: str = "") -> Dispatched:
        """Place every function of a DAG call. Raises NoSuchDagError, NoResourcesError.

        Nothing is sent and nothing counted unless all of its functions find an executor.
        """
        plan = self._plans.get(call.name)
        if plan is None:
            raise NoSuchDagError(f"no DAG {call.name!r} exists: create it first, or look at the list of DAGs")
        part = cb.DagSchedule(
            id=call_id or self.new_id(),
            consistency=call.consistency,
            response_address=call.response_address,
            output_key=call.output_key,
            client_id=call.client_id,
            start_time=unix_s,
        )
        arguments = call.function_args
        pools = self._table.functions
        picked: list[Executor] = []
        locations: list[bytes] = []
        for function in plan.functions:
            name = function.name
            references: Sequence[str] = ()
            if name in arguments:
                given = arguments[name]
                references = references_of(given.values)
                part.arguments[name].CopyFrom(given)
            pool = pools.get(name)
            executor = None
            if pool is not None:
                executor = self._policy.pick(pool, Request(name, references), self._table, self._rng)
            if executor is None:
                raise NoResourcesError(f"no executor can take {name!r} of DAG {plan.name!r} now: try again")
            entry = function.location + executor.location
            locations += (
                LOCATION,
                LENGTHS[len(entry)] if len(entry) < len(LENGTHS) else varint(len(entry)),
                entry,
            )
            picked.append(executor)
        if call.HasField("continuation"):
            part.continuation.CopyFrom(call.continuation)
            common = part.SerializeToString() + b"".join(locations)
        else:
            common = part.SerializeToString() + b"".join(locations) + NO_CONTINUATION
        sends = [
            (executor, SCHEDULE, function.schedule + common)
            for function, executor in zip(plan.functions, picked, strict=True)
        ]
        start = delimited(cb.DagTrigger.ID_FIELD_NUMBER, part.id.encode())
        sends += [(picked[position], TRIGGER, trigger + start) for position, trigger in plan.sources]
        self._table.note_calls(picked)
        self._arrivals.on_dag(plan.name, plan.names, now)
        return Dispatched(call.output_key or part.id, sends)

    def continue_dag(self, continuation: cb.Continuation, now: float, unix_s: float) -> Dispatched:
        """Call the next DAG with the result of the last one. Raises as `call_dag` does, and BadMessageError.

        The result is appended to the arguments of every source function; the id stays the same.
        """
        call = continuation.call
        call.name = continuation.name
        plan = self._plans.get(call.name)
        result = parse(cb.Value, continuation.result)
        if plan is not None:
            for position, _ in plan.sources:
                call.function_args[plan.names[position]].values.append(result)
        return self.call_dag(call, now, unix_s, continuation.id)

    def _at_locations(self, candidates: ExecutorPool, locations: Iterable[str]) -> Executor | None:
        near = [ip for ip in locations if ip in candidates.by_ip]
        if not near:
            return None
        neighbours = candidates.by_ip[near[int(self._rng.random() * len(near))]]
        return neighbours[int(self._rng.random() * len(neighbours))]
