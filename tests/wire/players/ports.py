"""The ports of WIRE.md, written down a second time: the players trust nobody's constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONNECT, FUNCTION_CREATE, FUNCTION_CALL, LIST, DAG_CREATE, DAG_CALL, DAG_DELETE = range(5000, 5007)
CALL_QUEUE, STATUS, SCHEDULER_UPDATE, PIN_ACCEPT, CONTINUATION = 4999, 5007, 5008, 5010, 5011
REQUEST_PORTS: Final = (CONNECT, FUNCTION_CREATE, FUNCTION_CALL, LIST, DAG_CREATE, DAG_CALL, DAG_DELETE)
PUSH_PORTS: Final = (CALL_QUEUE, STATUS, SCHEDULER_UPDATE, PIN_ACCEPT, CONTINUATION)
MGMT_STATUS, MGMT_SCHEDULERS, MGMT_DEPART, MGMT_STATISTICS = 7003, 7004, 7005, 7006
KVS_ROUTING, KVS_STORAGE, KVS_RESPONSE, KVS_ADDRESS = 6450, 6200, 6460, 6760


@dataclass(frozen=True)
class Layout:
    pin: int
    unpin: int
    call: int
    schedule: int
    trigger: int
    depart: int
    user_message: int = 5500


CLASSIC: Final = Layout(4000, 4010, 4020, 4030, 4040, 4050)
WIDE: Final = Layout(4000, 4150, 4300, 4450, 4600, 4750)
LAYOUTS: Final = {"classic": CLASSIC, "wide": WIDE}


def tcp(ip: str, port: int) -> str:
    return f"tcp://{ip}:{port}"
