"""The programs around a scheduler, played: they know addresses and bytes, and nothing of `ray_sched`.

So the suite that uses them can be pointed at any implementation of the wire contract.
"""

from __future__ import annotations

from .anna import AnnaClient, PlayedAnna
from .client import LegacyClient, NoReplyError, dag
from .executor import PlayedExecutor, Verdict
from .management import PlayedManagement
from .peer import PlayedPeer
from .protobuf import MalformedError, Record, decode, encode
from .scheduler import PlayedScheduler
from .sink import PlayedSink
from .sockets import Mailbox, NothingCameError, Pusher
from .stage import Stage, until
from .storage_tier import PlayedStorageTier

__all__ = [
    "AnnaClient",
    "LegacyClient",
    "Mailbox",
    "MalformedError",
    "NoReplyError",
    "NothingCameError",
    "PlayedAnna",
    "PlayedExecutor",
    "PlayedManagement",
    "PlayedPeer",
    "PlayedScheduler",
    "PlayedSink",
    "PlayedStorageTier",
    "Pusher",
    "Record",
    "Stage",
    "Verdict",
    "dag",
    "decode",
    "encode",
    "until",
]
