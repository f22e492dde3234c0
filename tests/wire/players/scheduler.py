"""A scheduler, as far as its executors can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import messages as m
from . import ports
from .protobuf import Record, decode, encode
from .sockets import Mailbox, Pusher


class PlayedScheduler:
    """Binds what executors push to (5007, 5010, 5011) on its own address, and tells them what to do.

    The executors are the threads of one address.
    """

    def __init__(self, ip: str, executors_ip: str, pusher: Pusher, *, layout: ports.Layout) -> None:
        self.ip = ip
        self._executors_ip = executors_ip
        self._pusher = pusher
        self._layout = layout
        self.mailbox = Mailbox(
            {
                "status": ports.tcp(ip, ports.STATUS),
                "answer": ports.tcp(ip, ports.PIN_ACCEPT),
                "continuation": ports.tcp(ip, ports.CONTINUATION),
            }
        )

    def push(self, kind: str, tid: int, raw: bytes) -> None:
        """Send bytes to the port of that kind of an executor thread."""
        address = ports.tcp(self._executors_ip, getattr(self._layout, kind) + tid)
        self._pusher.push(address, raw)

    def pin(self, tid: int, name: str, *, batching: bool = False) -> Record:
        """Pin a function; the executor's answer."""
        answered = len(self.mailbox.all("answer"))
        pin = {"name": name, "response_address": self.ip, "batching": batching}
        self.push("pin", tid, encode(m.PIN_FUNCTION, pin))
        return decode(m.GENERIC_RESPONSE, self.mailbox.wait_for("answer", answered + 1)[answered])

    def unpin(self, tid: int, name: str) -> None:
        self.push("unpin", tid, name.encode())

    def call(self, tid: int, name: str, key: str, *values: Any) -> None:
        call = {"name": name, "arguments": {"values": values}, "response_key": key}
        self.push("call", tid, encode(m.FUNCTION_CALL, call))

    def schedule(self, tid: int, **fields: Any) -> None:
        # A legacy schedule always carries a continuation, empty where there is none.
        self.push("schedule", tid, encode(m.DAG_SCHEDULE, {"continuation": {}, **fields}))

    def trigger(self, tid: int, call_id: str, function: str, *values: Any, source: str = "BEGIN") -> None:
        trigger = {
            "id": call_id,
            "target_function": function,
            "source": source,
            "arguments": {"values": values},
        }
        self.push("trigger", tid, encode(m.DAG_TRIGGER, trigger))

    def wait_for_status(self, tid: int, where: Callable[[Record], bool] = lambda status: True) -> Record:
        """A status of that thread that fits, from now or before. Raises `NothingCameError`."""

        def fits(raw: bytes) -> bool:
            status = decode(m.THREAD_STATUS, raw)
            return bool(status.tid == tid and where(status))

        return decode(m.THREAD_STATUS, self.mailbox.wait_for("status", where=fits, timeout_s=15.0)[-1])

    def statuses(self, tid: int) -> list[Record]:
        """All statuses of that thread so far, in their order."""
        found = [decode(m.THREAD_STATUS, raw) for raw in self.mailbox.all("status")]
        return [status for status in found if status.tid == tid]

    def close(self) -> None:
        self.mailbox.close()
