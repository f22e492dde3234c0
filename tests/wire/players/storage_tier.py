"""The storage tier that hands calls to a scheduler, with a hint of where their data lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import messages as m
from . import ports
from .protobuf import encode
from .sockets import Pusher


class PlayedStorageTier:
    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher

    def call(
        self,
        scheduler_ip: str,
        name: str,
        locations: Sequence[str],
        arguments: Sequence[Mapping[str, Any]] = (),
        **fields: Any,
    ) -> None:
        """Push a call to 4999, which nobody answers."""
        call = {
            "name": name,
            "arguments": {"values": arguments},
            "locations": locations,
            "source_hint": m.STORAGE,
            **fields,
        }
        self._pusher.push(ports.tcp(scheduler_ip, ports.CALL_QUEUE), encode(m.FUNCTION_CALL, call))
