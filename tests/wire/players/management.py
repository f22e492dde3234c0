"""A management node: names the schedulers, and hears statuses, departures and statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from . import messages as m
from . import ports
from .protobuf import Record, decode, encode
from .sockets import Mailbox

LONGEST_HANG_S: Final = 60.0


class PlayedManagement:
    """Binds 7003 to 7006 on one address. `schedulers` may change while it runs."""

    def __init__(self, ip: str, schedulers: Sequence[str] = ()) -> None:
        self.ip = ip
        self.schedulers = list(schedulers)
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.mailbox = Mailbox(
            {
                "status": ports.tcp(ip, ports.MGMT_STATUS),
                "schedulers": ports.tcp(ip, ports.MGMT_SCHEDULERS),
                "depart": ports.tcp(ip, ports.MGMT_DEPART),
                "statistics": ports.tcp(ip, ports.MGMT_STATISTICS),
            },
            self._play,
            replies=frozenset({"schedulers"}),
        )

    @contextmanager
    def hung(self) -> Iterator[None]:
        """From the next request for schedulers on it does nothing any more, until this ends."""
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    def wait_for_statistics(
        self,
        count: int = 1,
        *,
        where: Callable[[Record], bool] = lambda record: True,
        timeout_s: float = 15.0,
    ) -> list[Record]:
        found = self.mailbox.wait_for(
            "statistics",
            count,
            where=lambda raw: where(decode(m.EXECUTOR_STATISTICS, raw)),
            timeout_s=timeout_s,
        )
        return [decode(m.EXECUTOR_STATISTICS, raw) for raw in found]

    def wait_for_status(
        self, *, where: Callable[[Record], bool] = lambda record: True, timeout_s: float = 15.0
    ) -> Record:
        found = self.mailbox.wait_for(
            "status", where=lambda raw: where(decode(m.THREAD_STATUS, raw)), timeout_s=timeout_s
        )
        return decode(m.THREAD_STATUS, found[0])

    def close(self) -> None:
        self.mailbox.close()

    def _play(self, kind: str, raw: bytes) -> bytes | None:
        if kind != "schedulers":
            return None
        self._goes_on.wait(LONGEST_HANG_S)
        return encode(m.STRING_SET, {"keys": self.schedulers})
