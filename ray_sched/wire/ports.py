"""Ports of the wire protocol, as data.

Source: the wire contract (see docs in README, "On the wire"). A scheduler's ports are fixed numbers on its
own address, so that several groups on one machine need several addresses, not an offset. An
executor thread binds `base + tid`; the bases depend on the layout: `classic` leaves 10 threads
an address, `wide` 150.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from ray_sched.errors import BadMessageError

# What clients ask (REQ), one reply each.
CONNECT: Final = 5000
FUNCTION_CREATE: Final = 5001
FUNCTION_CALL: Final = 5002
LIST: Final = 5003
DAG_CREATE: Final = 5004
DAG_CALL: Final = 5005
DAG_DELETE: Final = 5006
REQUEST_PORTS: Final = (CONNECT, FUNCTION_CREATE, FUNCTION_CALL, LIST, DAG_CREATE, DAG_CALL, DAG_DELETE)

# What peers push, without an answer.
CALL_QUEUE: Final = 4999
STATUS: Final = 5007
SCHEDULER_UPDATE: Final = 5008
PIN_ACCEPT: Final = 5010
CONTINUATION: Final = 5011
PUSH_PORTS: Final = (CALL_QUEUE, STATUS, SCHEDULER_UPDATE, PIN_ACCEPT, CONTINUATION)

# The management node.
MGMT_STATUS: Final = 7003
MGMT_SCHEDULERS: Final = 7004
MGMT_DEPART: Final = 7005
MGMT_STATISTICS: Final = 7006

# The key-value store: routing tier, storage servers, and their clients.
KVS_ROUTING: Final = 6450
KVS_ROUTING_THREADS: Final = 4
KVS_STORAGE: Final = 6200
KVS_CLIENT_RESPONSE: Final = 6460
KVS_CLIENT_ADDRESS: Final = 6760
KVS_CLIENT_OFFSETS: Final = KVS_CLIENT_ADDRESS - KVS_CLIENT_RESPONSE
"""How many clients one address has room for: past it the two ranges would overlap."""


@dataclass(frozen=True)
class Layout:
    """Where an executor thread listens: `base + tid` for each kind of message."""

    name: str
    pin: int
    unpin: int
    call: int
    schedule: int
    trigger: int
    depart: int
    user_message: int
    threads: int
    """How many threads one address has room for."""


CLASSIC: Final = Layout("classic", 4000, 4010, 4020, 4030, 4040, 4050, 5500, threads=10)
WIDE: Final = Layout("wide", 4000, 4150, 4300, 4450, 4600, 4750, 5500, threads=150)
LAYOUTS: Final = {layout.name: layout for layout in (CLASSIC, WIDE)}


def check_executor_address(ip: str, tid: int, layout: Layout) -> None:
    """Raise BadMessageError for what cannot be an executor: no IP address, or a thread without a port."""
    try:
        ipaddress.ip_address(ip)
    except ValueError:
        raise BadMessageError(f"{ip[:100]!r} is not an IP address") from None
    if not 0 <= tid < layout.threads:
        raise BadMessageError(
            f"thread {tid} of {ip}: layout {layout.name!r} has ports for threads 0 to {layout.threads - 1}"
        )


def tcp(ip: str, port: int) -> str:
    """The ZeroMQ address of a port: `tcp://127.0.0.1:5000`."""
    return f"tcp://{ip}:{port}"
