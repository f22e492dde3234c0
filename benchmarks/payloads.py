"""The bytes that the loads are made of: requests as a client sends them, messages as executors get them."""

from __future__ import annotations

import itertools
import pickle
import uuid
from typing import Final

from ray_sched.reference import CloudburstReference
from ray_sched.values import to_value
from ray_sched.wire import cloudburst_pb2 as cb

EXECUTORS: Final = 3
"""Played executors, all on one address."""

CHAINS: Final = (1, 3, 10)
"""How many functions the DAGs of the loads have."""

KEY_STEP: Final = 21
"""From one reference to the next: the keys of one executor's address are so far from each other."""


def function_name(number: int) -> str:
    return f"bench_{number}"


def dag_name(length: int) -> str:
    return f"bench_chain_{length}"


def key(number: int) -> str:
    """One of the keys that executors have cached."""
    return f"bench_key_{number}"


def chain_of(name: str, functions: list[str]) -> cb.Dag:
    links = [cb.Dag.Link(source=source, sink=sink) for source, sink in itertools.pairwise(functions)]
    references = [cb.Dag.FunctionReference(name=function) for function in functions]
    return cb.Dag(name=name, functions=references, connections=links)


def chain(length: int) -> cb.Dag:
    return chain_of(dag_name(length), [function_name(number) for number in range(length)])


def argument() -> cb.Arguments:
    return cb.Arguments(values=[cb.Value(body=pickle.dumps(1))])


def dag_call(length: int, references: int = 0) -> bytes:
    """A call with one argument, or so many references to cached keys, whose result is wanted directly."""
    arguments = argument()
    if references:
        keys = [CloudburstReference(key(KEY_STEP * number)) for number in range(references)]
        arguments = cb.Arguments(values=map(to_value, keys))
    return cb.DagCall(
        name=dag_name(length),
        function_args={function_name(0): arguments},
        response_address="tcp://127.0.0.1:9000",
    ).SerializeToString()


def one_shot_call() -> bytes:
    return cb.FunctionCall(name=function_name(0), arguments=argument()).SerializeToString()


def schedules(length: int, ip: str) -> list[bytes]:
    """What the executors of a chain's call are sent, one for each function."""
    dag = chain(length)
    call = cb.DagCall.FromString(dag_call(length))
    made = []
    for number in range(length):
        schedule = cb.DagSchedule(
            id=str(uuid.uuid4()),
            dag=dag,
            target_function=function_name(number),
            triggers=[function_name(number - 1) if number else "BEGIN"],
            locations={function_name(n): f"{ip}:{n % EXECUTORS}" for n in range(length)},
            arguments=call.function_args,
            response_address=call.response_address,
            start_time=1.7e9,
            continuation=cb.Continuation(),
        )
        made.append(schedule.SerializeToString())
    return made


def trigger() -> bytes:
    return cb.DagTrigger(
        id=str(uuid.uuid4()), target_function=function_name(0), source="BEGIN"
    ).SerializeToString()


def forwarded_call() -> bytes:
    """What an executor is sent of a one-shot call: the same with a key for its result."""
    call = cb.FunctionCall.FromString(one_shot_call())
    call.response_key = str(uuid.uuid4())
    return call.SerializeToString()


def response() -> bytes:
    return cb.GenericResponse(success=True, response_id=str(uuid.uuid4())).SerializeToString()


def succeeded(reply: bytes) -> bool:
    """Whether a `GenericResponse` says so: its first field is the only one that can begin like this."""
    return reply.startswith(b"\x08\x01")
