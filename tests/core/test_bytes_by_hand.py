"""What the hot path writes by hand is, byte for byte or field for field, what protobuf would write."""

from __future__ import annotations

import itertools
import pickle
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.config import PolicyConfig
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import plan_of
from ray_sched.core.dispatch import SCHEDULE, Dispatcher
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import load_policy
from ray_sched.reference import CloudburstReference
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import accepted
from ray_sched.wire.protobuf import delimited, varint

TEXT = st.text(max_size=20) | st.just("x" * 2000)  # short, and longer than one byte of length says
BODIES = st.binary(max_size=20) | st.builds(
    lambda key: pickle.dumps(CloudburstReference(key), protocol=4), st.text(max_size=5)
)
ARGUMENTS = st.lists(st.builds(cb.Value, body=BODIES, type=st.sampled_from([cb.DEFAULT, cb.STRING]))).map(
    lambda values: cb.Arguments(values=values)
)
FUNCTIONS = ["f", "gé", "h" * 200]
CHAIN = cb.Dag(
    name="dag",
    functions=[cb.Dag.FunctionReference(name=name) for name in FUNCTIONS],
    connections=[cb.Dag.Link(source=a, sink=b) for a, b in itertools.pairwise(FUNCTIONS)],
)


def dispatcher() -> Dispatcher:
    config = PolicyConfig()
    table = ExecutorTable(config, local=True, pin_grace_s=1.0, executor_timeout_s=1e9)
    table.on_status(Status("10.0.0.1", 7, tuple(FUNCTIONS)), 0.0)
    return Dispatcher(table, {"dag": plan_of(CHAIN)}, load_policy(config), random.Random(1), Arrivals())


@settings(deadline=None)
@given(
    arguments=st.dictionaries(st.sampled_from([*FUNCTIONS, "not of this DAG"]), ARGUMENTS),
    texts=st.tuples(TEXT, TEXT, TEXT),
    consistency=st.sampled_from([cb.NORMAL, cb.SINGLE, cb.MULTI]),
    continuation=st.none() | st.builds(cb.Continuation, name=TEXT, result=st.binary(max_size=9)),
)
def test_a_schedule(
    arguments: dict[str, cb.Arguments],
    texts: tuple[str, str, str],
    consistency: cb.ConsistencyType,
    continuation: cb.Continuation | None,
) -> None:
    address, output_key, client_id = texts
    call = cb.DagCall(
        name="dag",
        function_args=arguments,
        response_address=address,
        output_key=output_key,
        client_id=client_id,
        consistency=consistency,
        continuation=continuation,
    )
    # As an ingress has it: parsed, with a field that this version does not know.
    received = cb.DagCall.FromString(call.SerializeToString() + delimited(15, b"unknown"))
    sends = dispatcher().call_dag(received, 1.0, 1.6e9, "the-id")[1]
    schedules = [cb.DagSchedule.FromString(body) for _, kind, body in sends if kind == SCHEDULE]
    assert len(schedules) == len(FUNCTIONS)
    for number, schedule in enumerate(schedules):
        assert schedule == cb.DagSchedule(
            id="the-id",
            dag=CHAIN,
            target_function=FUNCTIONS[number],
            consistency=consistency,
            triggers=[FUNCTIONS[number - 1] if number else "BEGIN"],
            locations=dict.fromkeys(FUNCTIONS, "10.0.0.1:7"),
            arguments={name: given for name, given in arguments.items() if name in FUNCTIONS},
            response_address=address,
            output_key=output_key,
            client_id=client_id,
            start_time=1.6e9,
            continuation=continuation or cb.Continuation(),
        )
        assert schedule.HasField("continuation")


@settings(deadline=None)
@given(
    st.builds(
        cb.FunctionCall,
        name=TEXT.filter(bool),
        request_id=st.integers(0, 2**32 - 1),
        arguments=ARGUMENTS,
        response_key=TEXT,
        consistency=st.sampled_from([cb.NORMAL, cb.MULTI]),
        locations=st.lists(TEXT, max_size=2),
        source_hint=st.sampled_from([cb.CLIENT, cb.STORAGE]),
    )
)
def test_a_one_shot_call(call: cb.FunctionCall) -> None:
    dispatched = dispatcher().call(call, 1.0)
    ((_, _, body),) = dispatched[1]
    expected = cb.FunctionCall()
    expected.CopyFrom(call)
    expected.response_key = dispatched[0]
    assert cb.FunctionCall.FromString(body) == expected
    assert dispatched[0] == (call.response_key or dispatched[0]) != ""


@settings(deadline=None)
@given(TEXT)
def test_the_reply_to_a_call(response_id: str) -> None:
    reply = cb.GenericResponse(success=True, response_id=response_id)
    assert accepted(response_id) == reply.SerializeToString()


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(0, 40_000))
def test_a_field(field: int, length: int) -> None:
    """Against the encoding's own rules: seven bits a byte, the lowest first, and a bit for "more follows"."""
    encoded = delimited(field, b"x" * length)
    assert encoded[0] == field * 8 + 2
    header = encoded[1 : len(encoded) - length]
    assert header == varint(length)
    assert sum((byte & 0x7F) << 7 * n for n, byte in enumerate(header)) == length
    assert [byte >= 0x80 for byte in header] == [True] * (len(header) - 1) + [False]
