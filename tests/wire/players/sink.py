"""Where a DAG's result arrives that was asked for directly."""

from __future__ import annotations

from . import messages as m
from .protobuf import Record, decode
from .sockets import Mailbox


class PlayedSink:
    """Binds a free port of `ip`; its `address` is a call's `response_address`."""

    def __init__(self, ip: str) -> None:
        self.mailbox = Mailbox({"value": f"tcp://{ip}:0"})
        self.address = self.mailbox.address["value"]

    def wait_for(self, count: int = 1, *, timeout_s: float = 15.0) -> list[Record]:
        """The first `count` or more `Value`s. Raises `NothingCameError`."""
        return [decode(m.VALUE, raw) for raw in self.mailbox.wait_for("value", count, timeout_s=timeout_s)]

    def close(self) -> None:
        self.mailbox.close()
