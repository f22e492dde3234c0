"""The hot path: a call comes in, messages to executors come out.

The same class decides for the Ingress (under its lease) and for the Scheduler (the Python API, and
what an ingress may not decide). Nothing here waits, logs or asks anybody.

Why it is fast (`docs/performance.md` has the figures):
- Candidate sets are kept, not built: a pick is an index into a list (`pools`).
- A schedule is bytes put together, not a message built: what is constant is serialized with the plan,
  what belongs to the call once for all of its functions, and where a function runs with the executor that
  holds it. Serialized parts that are joined are one message.
- Arguments are passed on as they are serialized, and looked into only where the bytes have a reference.
- An id costs random bits and no system call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Final

from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan
from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorPool, ExecutorTable
from ray_sched.core.history import Decisions
from ray_sched.core.policies import Policy, Request, Rng, any_reachable
from ray_sched.core.references import may_refer, references_of
from ray_sched.errors import BadMessageError, NoResourcesError, NoSuchDagError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import parse
from ray_sched.wire.protobuf import FIXED_64, delimited

MAX_CALL_BYTES = 2**30
"""What the messages of one call may come to: each function's schedule carries all arguments."""

CALL, SCHEDULE, TRIGGER = "call", "schedule", "trigger"
"""The kinds of message that a call sends, as `Layout` names their ports."""


Dispatched = tuple[str, list[tuple[Executor, str, bytes]]]
"""What a call comes to: the id for the reply, and what to send to whom, in order: executor, kind of message,
bytes. A bare tuple, since to make a named one takes as long as a pick."""

ID: Final = cb.DagSchedule.ID_FIELD_NUMBER
"""That of a trigger is the same."""
RESPONSE_ADDRESS: Final = cb.DagSchedule.RESPONSE_ADDRESS_FIELD_NUMBER
OUTPUT_KEY: Final = cb.DagSchedule.OUTPUT_KEY_FIELD_NUMBER
CLIENT_ID: Final = cb.DagSchedule.CLIENT_ID_FIELD_NUMBER
START_TIME: Final = Struct("<Bd").pack
START_TIME_TAG: Final = cb.DagSchedule.START_TIME_FIELD_NUMBER << 3 | FIXED_64
ARGUMENTS: Final = cb.DagSchedule.ARGUMENTS_FIELD_NUMBER
CONTINUATION: Final = cb.DagSchedule.CONTINUATION_FIELD_NUMBER
NO_CONTINUATION: Final = delimited(CONTINUATION, b"")
"""A legacy schedule has the field always."""
RESPONSE_KEY: Final = cb.FunctionCall.RESPONSE_KEY_FIELD_NUMBER


plain_request: Final = lru_cache(maxsize=1024)(Request)
"""One without references, ready made: calls name the same functions again and again."""


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
        remembered: int = 1000,
    ) -> None:
        """`remembered` is how many decisions can be asked for afterwards."""
        self.decisions = Decisions(remembered)
        self._remember = self.decisions.add
        self._table = table
        self._plans = plans
        self._policy = policy
        self._rng = rng
        self._arrivals = arrivals

    def new_id(self) -> str:
        """A random UUID (version 4), from this dispatcher's own generator."""
        digits = self._rng.getrandbits(128).to_bytes(16, "big").hex()
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def call(self, call: cb.FunctionCall, now: float) -> Dispatched:
        """Place a one-shot call on a free executor. Raises NoResourcesError, BadMessageError.

        With `source_hint` STORAGE one on the `locations` that hold the data comes first.
        """
        name, key = call.name, call.response_key
        if not name:
            raise BadMessageError("a call has to name its function")
        candidates: ExecutorPool = self._table.free[False]
        message = call.SerializeToString()
        executor = None
        if call.source_hint == cb.STORAGE:
            executor = self._at_locations(candidates, call.locations)
        if executor is None:
            if may_refer(message):
                request = Request(name, references_of(call.arguments.values))
            else:
                request = plain_request(name)
            executor = self._policy.pick(candidates, request, self._table, self._rng)
        if executor is not None and executor.suspected:  # a random share goes to overloaded ones, too
            executor = any_reachable(candidates, self._rng)
        if executor is None:
            seen = candidates.sizes
            busy = f" ({seen[1]} are overloaded: policy.max_recent_calls, max_utilization)" if seen[1] else ""
            refused = f"no free executor for {name!r}{busy}: try again, or add executors"
            self._remember((now, key, "", name, (name,), (), (seen,), refused))
            raise NoResourcesError(refused)
        if not key:
            key = self.new_id()
            message += delimited(RESPONSE_KEY, key.encode())
        self._remember((now, key, name, executor, candidates.sizes))
        self._table.note_calls((executor,))
        self._table.book(executor, seq_at(now))
        self._arrivals.on_function(name)
        return key, [(executor, CALL, message)]

    def call_dag(self, call: cb.DagCall, now: float, unix_s: float, call_id: str = "") -> Dispatched:
        """Place every function of a DAG call. Raises NoSuchDagError, NoResourcesError, BadMessageError.

        Nothing is sent and nothing counted unless all of its functions find an executor.
        """
        plan = self._plans.get(call.name)
        if plan is None:
            raise NoSuchDagError(
                f"no DAG {call.name!r} exists: create it first; ray-sched status lists the DAGs"
            )
        call_id = call_id or self.new_id()
        output_key, identified = call.output_key, delimited(ID, call_id.encode())
        # What this call adds to every function's schedule, serialized once.
        part = [identified, START_TIME(START_TIME_TAG, unix_s)]
        if call.consistency != cb.NORMAL:
            part.append(cb.DagSchedule(consistency=call.consistency).SerializeToString())
        if address := call.response_address:
            part.append(delimited(RESPONSE_ADDRESS, address.encode()))
        if output_key:
            part.append(delimited(OUTPUT_KEY, output_key.encode()))
        if client := call.client_id:
            part.append(delimited(CLIENT_ID, client.encode()))
        given = call.function_args
        some_given = len(given) > 0  # to look for each name among none costs as much as to find it
        pools, table, rng, pick = self._table.functions, self._table, self._rng, self._policy.pick
        picked: list[Executor] = []
        seen: list[tuple[int, int]] = []
        for name, _, key, plain in plan.functions:
            request = plain
            if some_given and name in given:
                arguments = given[name]
                serialized = arguments.SerializeToString()
                if may_refer(serialized):
                    request = Request(name, references_of(arguments.values))
                part.append(delimited(ARGUMENTS, key + delimited(2, serialized)))
            pool = pools.get(name)
            executor = None if pool is None else pick(pool, request, table, rng)
            if pool is not None:
                seen.append(pool.sizes)
            if executor is None or executor.suspected:
                if executor is not None and pool is not None:  # a random share goes to overloaded ones, too
                    executor = any_reachable(pool, rng)
                if executor is None:
                    refused = f"no executor can take {name!r} of DAG {plan.name!r} now: try again"
                    told = (now, call_id, output_key, plan.name, plan.names, picked)
                    self._remember((*told, seen if pool is not None else [*seen, (0, 0)], refused))
                    raise NoResourcesError(refused)
            part.append(executor.entries[name])
            picked.append(executor)
        if call.HasField("continuation"):
            part.append(delimited(CONTINUATION, call.continuation.SerializeToString()))
        else:
            part.append(NO_CONTINUATION)
        common = b"".join(part)
        if len(common) * len(picked) > MAX_CALL_BYTES:
            raise BadMessageError(
                f"a call with {len(common)} bytes, sent to {len(picked)} functions each, is too large: "
                f"the limit is {MAX_CALL_BYTES} in all; put large arguments into the key-value store"
            )
        sends = [
            (executor, SCHEDULE, function.schedule + common)
            for function, executor in zip(plan.functions, picked, strict=True)
        ]
        sends += [(picked[position], TRIGGER, trigger + identified) for position, trigger in plan.sources]
        self._remember((now, call_id, output_key, plan.name, plan.names, picked, seen, ""))
        self._table.note_calls(picked)
        self._arrivals.on_dag(plan.name, plan.names, now)
        return output_key or call_id, sends

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
