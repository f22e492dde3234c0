"""What the actors of a group tell each other, beside the updates of the dispatch table."""

from __future__ import annotations

from dataclasses import dataclass

from ray_sched.core.executor import Address, ExecutorRecord, Status
from ray_sched.core.pins import Pin
from ray_sched.wire.codec import Reply

Send = tuple[str, int, str, bytes]
"""IP and thread of an executor, kind of message, bytes."""


@dataclass(frozen=True)
class StatusSeen:
    """An executor's status, and its place in the order of all that happened to the executor."""

    status: Status
    seq: int
    at: float
    """Seconds of the node's monotonic clock."""

    @property
    def address(self) -> Address:
        return self.status.address


@dataclass(frozen=True)
class Seen:
    """Executors whose statuses changed nothing."""

    addresses: tuple[Address, ...]
    at: float


@dataclass(frozen=True)
class Booked:
    """A one-shot call took an executor."""

    address: Address
    seq: int


@dataclass(frozen=True)
class Suspected:
    """Messages to an executor pile up."""

    address: Address


@dataclass(frozen=True)
class Relieved:
    """It takes them again."""

    address: Address


@dataclass(frozen=True)
class PinAnswered:
    success: bool
    name: str


@dataclass(frozen=True)
class Presence:
    """What an executor actor tells of itself beside its statuses on the wire."""

    node: str
    """Id of its Ray node."""
    pid: int
    gpu: bool
    holds_slot: bool
    """Whether it holds one `executor` of its node."""
    idle_s: float


Event = StatusSeen | Seen | Booked | Suspected | Relieved | PinAnswered


@dataclass(frozen=True)
class Decision:
    """The Scheduler's answer to a request: the reply, and what to send."""

    reply: Reply
    sends: tuple[Send, ...] = ()
    pushes: tuple[tuple[str, bytes], ...] = ()
    """Whole addresses, and what to push there."""
    again: bool = False
    """Nothing can be decided just now, and nobody was told: whoever gets no reply had better ask again."""


@dataclass(frozen=True)
class Pinned:
    """The end of a pin transaction: the pins and what is now known of their executors."""

    pins: tuple[Pin, ...]
    executors: tuple[ExecutorRecord, ...]
    reason: str = ""
    """Why nothing was pinned; empty where everything is."""
