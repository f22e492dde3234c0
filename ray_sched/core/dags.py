"""DAGs: what makes one valid, and the plan by which its calls are scheduled.

A plan holds each function's part of a schedule serialized once. A call adds its own part, also
serialized once, to each of them: concatenated protobufs merge into one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ray_sched.core.policies import Request
from ray_sched.errors import FunctionNotFoundError, InvalidDagError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import is_longer
from ray_sched.wire.protobuf import delimited

BEGIN = "BEGIN"
"""The upstream function that a source waits for: the scheduler itself."""

RESERVED = ("funcs/", "ray_sched/", "ANNA_METADATA|")
"""How keys of the key-value store begin that are not DAGs: a DAG of such a name would overwrite one."""

PLAN_BYTES = 64 * 2**20
"""What a plan may take: each of its functions' schedules holds the whole DAG."""

TOLD = 5
"""How many names a refusal lists at most."""


@dataclass(frozen=True)
class Limits:
    """What may be registered."""

    dag_functions: int = 1000
    """In one DAG."""
    name_bytes: int = 1024
    functions: int = 100_000
    dags: int = 10_000


LIMITS = Limits()


class PlannedFunction(NamedTuple):
    """A tuple, since each call unpacks it."""

    name: str
    schedule: bytes
    """The constant part of its `DagSchedule`: the DAG, the target and its triggers."""
    key: bytes
    """What begins its entry in a schedule's map of arguments."""
    request: Request
    """What a policy is told of a call of it without references."""


@dataclass(frozen=True)
class Plan:
    """How calls of one DAG are scheduled."""

    name: str
    functions: tuple[PlannedFunction, ...]
    names: tuple[str, ...]
    sources: tuple[tuple[int, bytes], ...]
    """The functions that the scheduler triggers, by position, and the constant part of that `DagTrigger`."""


def plan_of(dag: cb.Dag) -> Plan:
    """The plan of a valid DAG."""
    upstream: dict[str, list[str]] = {function.name: [] for function in dag.functions}
    for link in dag.connections:
        upstream[link.sink].append(link.source)
    return Plan(
        dag.name,
        tuple(
            PlannedFunction(
                name,
                cb.DagSchedule(
                    dag=dag, target_function=name, triggers=upstream[name] or [BEGIN]
                ).SerializeToString(deterministic=True),
                delimited(1, name.encode()),
                Request(name),
            )
            for name in upstream
        ),
        tuple(upstream),
        tuple(
            (position, cb.DagTrigger(target_function=name, source=BEGIN).SerializeToString())
            for position, (name, sources) in enumerate(upstream.items())
            if not sources
        ),
    )


def validate_dag(dag: cb.Dag, is_registered: Callable[[str], bool], limits: Limits = LIMITS) -> None:
    """Raise InvalidDagError, or FunctionNotFoundError for functions that are not registered, saying why."""
    if not dag.name:
        raise InvalidDagError("a DAG needs a name")
    _check_length("the name of a DAG", dag.name, limits)
    if dag.name.startswith(RESERVED):
        raise InvalidDagError(f"a DAG cannot be named {dag.name!r}: {', '.join(RESERVED)} begin other keys")
    names = [function.name for function in dag.functions]
    known = set(names)
    if not names:
        raise InvalidDagError(f"DAG {dag.name!r} has no functions: name at least one")
    if len(names) > limits.dag_functions:
        raise InvalidDagError(
            f"DAG {dag.name!r} has {len(names)} functions: the limit is {limits.dag_functions} "
            "(scheduler.max_dag_functions)"
        )
    for name in known:
        _check_length(f"the name of a function of DAG {dag.name!r}", name, limits)
    if (size := len(names) * dag.ByteSize()) > PLAN_BYTES:
        raise InvalidDagError(
            f"DAG {dag.name!r} is too large: each of its {len(names)} functions is sent all of it, "
            f"{size} bytes for a call; the limit is {PLAN_BYTES}"
        )
    if "" in known:
        raise InvalidDagError(f"DAG {dag.name!r} has a function without a name")
    if BEGIN in known:
        raise InvalidDagError(
            f"DAG {dag.name!r}: {BEGIN!r} is the scheduler's own name, a function cannot have it"
        )
    if twice := _first_repeated(names):
        raise InvalidDagError(
            f"DAG {dag.name!r} names function {twice!r} twice: a function may stand in it once"
        )
    for link in dag.connections:
        for end in (link.source, link.sink):
            if end not in known:
                raise InvalidDagError(
                    f"DAG {dag.name!r} links {end[:100]!r}, which is not among its functions"
                )
    links = [(link.source, link.sink) for link in dag.connections]
    if repeated := _first_repeated(links):
        raise InvalidDagError(f"DAG {dag.name!r} links {repeated[0]!r} to {repeated[1]!r} twice")
    if cycle := _functions_on_cycles(names, links):
        raise InvalidDagError(f"DAG {dag.name!r} has a cycle among {_listed(cycle)}")
    sinks = sorted(known - {source for source, _ in links})
    if len(sinks) != 1:
        raise InvalidDagError(
            f"DAG {dag.name!r} has {len(sinks)} sinks ({_listed(sinks)}): one function has to give the result"
        )
    for name in dag.colocated:
        if name not in known:
            raise InvalidDagError(
                f"DAG {dag.name!r} colocates {name[:100]!r}, which is not among its functions"
            )
    missing = [name for name in names if not is_registered(name)]
    if missing:
        raise FunctionNotFoundError(
            f"DAG {dag.name!r} needs {_listed(missing)}: register every function before the DAG"
        )


def _check_length(what: str, name: str, limits: Limits) -> None:
    if is_longer(name, limits.name_bytes):
        raise InvalidDagError(
            f"{what}, {name[:30]!r}..., is too long: the limit is {limits.name_bytes} bytes "
            "(scheduler.max_name_bytes)"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(map(repr, names[:TOLD])) + more


def _first_repeated(items: Iterable[str] | Iterable[tuple[str, str]]) -> str | tuple[str, str] | None:
    seen: set[str | tuple[str, str]] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def _functions_on_cycles(names: list[str], links: list[tuple[str, str]]) -> list[str]:
    """The functions that never become ready when sources are taken away one after the other."""
    waits_for = dict.fromkeys(names, 0)
    sinks: dict[str, list[str]] = {name: [] for name in names}
    for source, sink in links:
        waits_for[sink] += 1
        sinks[source].append(sink)
    ready = [name for name in names if not waits_for[name]]
    while ready:
        for sink in sinks[ready.pop()]:
            waits_for[sink] -= 1
            if not waits_for[sink]:
                ready.append(sink)
    return [name for name in names if waits_for[name]]
