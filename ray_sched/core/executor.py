"""What is known of one executor, what its status says of it, and what copies of the table are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.protobuf import delimited

Address = tuple[str, int]
"""IP address and thread number of an executor."""

BUCKETS = 10
"""How finely the window of recent calls is cut: old ones leave in steps of a tenth of it."""

MAX_FUNCTIONS = 10_000
"""Functions that an executor may be said to hold, by itself or by others."""


class Status(NamedTuple):
    """What a `ThreadStatus` says. A tuple, as thousands may arrive in a second."""

    ip: str
    tid: int
    functions: tuple[str, ...] = ()
    utilization: float = 0.0
    running: bool = True
    gpu: bool = False
    process: int = 0
    """Which process of the executor says it; 0 for the first, and of foreign ones for all."""
    reconnections: int = 0
    """How often a connection over which calls come was made anew; what was on its way then is lost."""

    @property
    def address(self) -> Address:
        return (self.ip, self.tid)


@dataclass(frozen=True)
class ExecutorRecord:
    """One executor as a copy of the table is told of it; times are of the shared monotonic clock."""

    ip: str
    tid: int
    gpu: bool
    functions: tuple[str, ...]
    fresh: tuple[tuple[str, float], ...]
    free: bool
    backoff_until: float
    last_seen: float
    utilization: float
    seq: int
    hearsay: tuple[str, ...] = ()
    process: int = 0
    is_ours: bool = False

    def status(self) -> Status:
        """What its latest status may have said, without what is known from peers alone."""
        functions = tuple(function for function in self.functions if function not in self.hearsay)
        return Status(self.ip, self.tid, functions, self.utilization, gpu=self.gpu, process=self.process)


class Executor:
    """One executor; only its table changes it."""

    __slots__ = (
        "address",
        "ahead",
        "backing_off",
        "backoff_until",
        "buckets",
        "entries",
        "free",
        "fresh",
        "full",
        "functions",
        "gpu",
        "hearsay",
        "ip",
        "is_ours",
        "joined",
        "last_seen",
        "listed",
        "name",
        "overloaded",
        "process",
        "recent",
        "reported",
        "seq",
        "suspected",
        "tid",
        "unpinning",
        "utilization",
    )  # fmt: skip

    def __init__(self, ip: str, tid: int) -> None:
        self.ip = ip
        self.tid = tid
        self.address: Address = (ip, tid)
        self.name = f"{ip}:{tid}"
        """As schedules name it."""
        self.entries: dict[str, bytes] = {}
        """Its entry in a schedule's map of locations for each of its functions, as bytes of the wire."""
        self.gpu = False
        self.functions: set[str] = set()
        self.listed: list[str] | None = None
        """The same as its last status named them; None where they are others since."""
        self.fresh: dict[str, float] = {}
        """Pins that no status has confirmed for certain yet, and since when."""
        self.hearsay: set[str] = set()
        """Functions of which peers say that it holds them, and nobody here knows it."""
        self.unpinning: set[str] = set()
        """Functions that it was told from here to unpin, and that no status of it lacked since: the authority
        is to hear of that status, though it may change nothing here."""
        self.free = False
        self.backing_off = False
        self.backoff_until = 0.0
        self.last_seen = 0.0
        self.process = 0
        """Which of its processes reported last, as its statuses say it."""
        self.is_ours = False
        """It has named itself: so its statuses tell when its process is another one than before."""
        self.reported = False
        """Whether it ever sent a status; otherwise it is known from peers or from a pin alone."""
        self.utilization = 0.0
        self.seq = 0
        self.ahead = False
        """Whether the authority did not know yet what was seen here: should it have been lost on its way
        there, the next status tells it."""
        self.joined = 0
        """As of which `seq` it is known here, since it was last gone."""
        self.recent = 0
        self.buckets = [0] * BUCKETS
        self.suspected = False
        """Messages to it could not be sent: left out until its next status; where `full`, until they are."""
        self.full = False
        """Messages to it wait for room, so that it takes no further ones, whatever it says."""
        self.overloaded = False

    def __repr__(self) -> str:
        return f"<executor {self.name} {sorted(self.functions)}{' free' if self.free else ''}>"


def location_entry(function: str, name: str) -> bytes:
    """The field of a `DagSchedule` that says: this executor runs that function."""
    entry = delimited(1, function.encode()) + delimited(2, name.encode())
    return delimited(cb.DagSchedule.LOCATIONS_FIELD_NUMBER, entry)
