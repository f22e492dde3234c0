"""What the pin transaction speaks of: requests, pins, effects, and the name in an executor's answer."""

from __future__ import annotations

from dataclasses import dataclass

from ray_sched.core.executor import Address
from ray_sched.wire import cloudburst_pb2 as cb


@dataclass(frozen=True)
class PinRequest:
    """One function that a DAG needs pinned."""

    function: str
    gpu: bool = False
    batching: bool = False
    colocated: bool = False


@dataclass(frozen=True, order=True)
class Pin:
    dag: str
    function: str
    address: Address


# --- effects ---


@dataclass(frozen=True)
class SendPin:
    address: Address
    function: str
    batching: bool
    origin: str = ""
    """The id of the request that it is for, where there is one."""


@dataclass(frozen=True)
class SendUnpin:
    address: Address
    function: str


@dataclass(frozen=True)
class Forget:
    """The executor does not have the function that it was told to pin: what was kept of that may go."""

    address: Address
    function: str


@dataclass(frozen=True)
class Reserve:
    """Have Ray count the pin, on its executor's node; `Pinning.on_reserved` is to hear what became of it."""

    pin: Pin
    gpu: bool


@dataclass(frozen=True)
class Unreserve:
    """The pin counts no more, or was never made."""

    pin: Pin


@dataclass(frozen=True)
class Demand:
    """These functions of a DAG found no room: the cluster would have to grow. Replaces what the DAG
    demanded before; none (0 and 0): it demands nothing any more."""

    dag: str
    pins: int
    gpu_pins: int


@dataclass(frozen=True)
class Finished:
    """A transaction ended: all of its functions are pinned, or (`reason`) none is."""

    transaction: int
    dag: str
    pins: tuple[Pin, ...]
    reason: str = ""


Effect = SendPin | SendUnpin | Forget | Reserve | Unreserve | Demand | Finished


def pin_requests(dag: cb.Dag, replicas: int) -> list[PinRequest]:
    """What a DAG needs pinned, each function as often as it has replicas."""
    colocated = set(dag.colocated)
    return [
        PinRequest(function.name, function.gpu, function.batching, function.name in colocated)
        for function in dag.functions
        for _ in range(replicas)
    ]


def parse_answer_name(name: str) -> tuple[Address | None, str]:
    """`ip:tid/function`, by which our executors name themselves in `response_id`; (None, "") for others."""
    executor, slash, function = name.partition("/")
    ip, colon, tid = executor.rpartition(":")
    if not (slash and colon and ip and tid.isascii() and tid.isdigit()):
        return None, ""
    return (ip, int(tid)), function


def answer_name(address: Address, function: str) -> str:
    """What `parse_answer_name` reads."""
    return f"{address[0]}:{address[1]}/{function}"
