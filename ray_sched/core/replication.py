"""How copies of the dispatch table are kept: whole records, numbered, under a lease.

A `Publisher` numbers what it sends; a `Replica` takes the numbers in order and says when it needs
the whole again. The first number of a publisher is random (its `epoch`), so that one that was
restarted is noticed. An update renews the lease of whoever holds the copy.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ray_sched.core.executor import Address, ExecutorRecord
from ray_sched.core.executors import ExecutorTable


@dataclass(frozen=True)
class Update:
    """What changed since the last update, or (`whole`) everything.

    A DAG is given as its serialized `Dag`, or None once it is deleted.
    """

    epoch: int
    number: int
    whole: bool = False
    executors: tuple[ExecutorRecord, ...] = ()
    removed: dict[Address, int] = field(default_factory=dict)
    """Who is gone, and as of which `seq`."""
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dags: dict[str, bytes | None] = field(default_factory=dict)
    sent_at: float = 0.0
    """Seconds of the monotonic clock that all processes of a node share."""


Batch = tuple[int, int]
"""Who numbers its batches (a random number, of each process another one), and the number, from 1 on."""


class Batches:
    """Tells whether one got lost of what a peer sends in numbered batches, one after the other."""

    def __init__(self) -> None:
        self._last: Batch | None = None

    def is_one_missing(self, batch: Batch) -> bool:
        """Before this one, which may be the first one here of its sender's; one that comes again is none."""
        number = 0 if self._last is None or self._last[0] != batch[0] else self._last[1]
        self._last = (batch[0], max(number, batch[1]))
        return batch[1] > number + 1


class Publisher:
    """Numbers the updates of one table (and, in the Scheduler, of the DAGs)."""

    def __init__(self, table: ExecutorTable, epoch: int) -> None:
        self._table = table
        self._epoch = epoch
        self._number = 0
        self._dags: dict[str, bytes] = {}
        self._dirty_dags: dict[str, None] = {}

    def set_dag(self, name: str, dag: bytes | None) -> None:
        """A DAG came to be, or (None) is no more."""
        if dag is None:
            self._dags.pop(name, None)
        else:
            self._dags[name] = dag
        self._dirty_dags[name] = None

    def has_changes(self) -> bool:
        return bool(self._table.dirty or self._table.cached_keys.dirty or self._dirty_dags)

    def next_update(self, now: float) -> Update:
        """What changed since the last one; without changes it is a heartbeat."""
        table = self._table
        records = {address: table.record(address) for address in table.dirty}
        update = Update(
            self._epoch,
            self._number + 1,
            False,
            tuple(record for record in records.values() if record is not None),
            {address: table.left_at(address) for address, record in records.items() if record is None},
            table.cached_keys.of(table.cached_keys.dirty),
            {name: self._dags.get(name) for name in self._dirty_dags},
            now,
        )
        self._number += 1
        table.dirty.clear()
        table.pressing = False
        table.cached_keys.dirty.clear()
        self._dirty_dags.clear()
        return update

    def whole(self, now: float) -> Update:
        """Everything, as of the last update: later updates go on from it."""
        table = self._table
        return Update(
            self._epoch,
            self._number,
            True,
            tuple(table.records()),
            {},
            table.cached_keys.all(),
            dict(self._dags),
            now,
        )


class Outcome(enum.Enum):
    """What became of an update."""

    APPLIED = "applied"
    OLD = "old"
    """It was known already."""
    GAP = "gap"
    """One before it is missing: the whole has to be asked for."""


class Replica:
    """Applies updates to a copy of the table, and knows until when the copy may be trusted."""

    def __init__(self, table: ExecutorTable, lease_s: float) -> None:
        self._table = table
        self._lease_s = lease_s
        self._epoch = 0
        self._number = -1
        self._until = float("-inf")

    def apply(self, update: Update) -> Outcome:
        """Take an update in, where it is the next one or the whole."""
        if update.whole:
            if update.epoch == self._epoch and update.number < self._number:
                return Outcome.OLD
            self._forget_all_but(update)
            self._epoch, self._number = update.epoch, update.number
        elif update.epoch != self._epoch or update.number > self._number + 1:
            return Outcome.GAP
        elif update.number <= self._number:
            return Outcome.OLD
        else:
            self._number = update.number
        for record in update.executors:
            self._table.apply(record)
        for address, seq in update.removed.items():
            self._table.apply_removal(address, seq)
        for ip, keys in update.keys.items():
            self._table.cached_keys.set(ip, keys)
        self._until = max(self._until, update.sent_at + self._lease_s)
        return Outcome.APPLIED

    def may_decide(self, now: float) -> bool:
        """Whether the lease still runs."""
        return now < self._until

    def age_s(self, now: float) -> float:
        """Seconds since the last update was sent."""
        return now - (self._until - self._lease_s)

    def _forget_all_but(self, update: Update) -> None:
        """Drop executors that the whole lacks, but not those that reported after it was made."""
        known = {(record.ip, record.tid) for record in update.executors}
        for address, executor in list(self._table.executors.items()):
            if address not in known and executor.last_seen < update.sent_at - 1.0:
                self._table.remove(address)
        for ip in self._table.cached_keys.all():
            if ip not in update.keys:
                self._table.cached_keys.set(ip, ())
