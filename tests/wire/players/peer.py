"""Another scheduler, as far as its peers can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import messages as m
from . import ports
from .protobuf import Record, decode, encode
from .sockets import Mailbox, Pusher


class PlayedPeer:
    """Binds 5008 on its own address, and tells a scheduler of DAGs and of where functions are."""

    def __init__(self, ip: str, pusher: Pusher) -> None:
        self.ip = ip
        self._pusher = pusher
        self.mailbox = Mailbox({"update": ports.tcp(ip, ports.SCHEDULER_UPDATE)})

    def tell(
        self, scheduler_ip: str, dags: Sequence[str], locations: Sequence[tuple[str, str, int]] = ()
    ) -> None:
        """`locations` are (function, executor's IP, its tid)."""
        found = [{"name": name, "ip": ip, "tid": tid} for name, ip, tid in locations]
        self._pusher.push(
            ports.tcp(scheduler_ip, ports.SCHEDULER_UPDATE),
            encode(m.SCHEDULER_STATUS, {"dags": dags, "function_locations": found}),
        )

    def wait_for(
        self,
        count: int = 1,
        *,
        where: Callable[[Record], bool] = lambda record: True,
        timeout_s: float = 15.0,
    ) -> list[Record]:
        found = self.mailbox.wait_for(
            "update", count, where=lambda raw: where(decode(m.SCHEDULER_STATUS, raw)), timeout_s=timeout_s
        )
        return [decode(m.SCHEDULER_STATUS, raw) for raw in found]

    def close(self) -> None:
        self.mailbox.close()
