"""The other schedulers: who they are, what we tell them, and what they tell us.

A legacy peer is told, and tells, the names of the DAGs it knows and where functions are pinned
(`SchedulerStatus`). It can only teach creations: a DAG that was deleted here is not learned again
from a peer that still names it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_sched.core.executor import Address
from ray_sched.wire import internal_pb2

DELETED_KEPT = 10_000
"""How many deleted DAGs are remembered."""

TOLD_DELETED = 1_000
"""How many of them peers are told of."""


class Peers:
    def __init__(self, host: str) -> None:
        self._host = host
        self._found: tuple[str, ...] = ()
        self._own: set[str] = set()
        self._deleted: dict[str, None] = {}
        """DAGs that were deleted here."""
        self._gone: dict[str, None] = {}
        """DAGs that a peer deleted."""

    def found(self, hosts: Iterable[str]) -> None:
        """The schedulers that exist now, by address; our own among them does not count."""
        self._found = tuple(sorted({host for host in hosts if host and host != self._host}))

    def hosts(self) -> tuple[str, ...]:
        return self._found

    def created(self, dag: str) -> None:
        """A DAG of that name was created here."""
        self._own.add(dag)
        self._deleted.pop(dag, None)
        self._gone.pop(dag, None)

    def deleted(self, dag: str) -> None:
        """A DAG was deleted here."""
        self._own.discard(dag)
        _remember(self._deleted, dag)

    def deleted_elsewhere(self, dags: Iterable[str], listed: Iterable[str]) -> list[str]:
        """A peer deleted these DAGs, and lists those; returns which of the deleted are to be forgotten.

        One that was created here is not the peer's to delete, and one that it lists exists anew.
        """
        for dag in listed:
            self._gone.pop(dag, None)
        gone = [dag for dag in dags if dag not in self._own and dag not in set(listed)]
        for dag in gone:
            _remember(self._gone, dag)
        return gone

    def recently_deleted(self) -> list[str]:
        """What to tell those peers who can learn deletions, too: our own alone."""
        return list(self._deleted)[-TOLD_DELETED:]

    def to_learn(self, named: Iterable[str], known: Iterable[str]) -> list[str]:
        """Which of the DAGs that a peer names are worth looking up."""
        return sorted({dag for dag in named if dag} - set(known) - self._deleted.keys() - self._gone.keys())


def _remember(dags: dict[str, None], dag: str) -> None:
    dags.pop(dag, None)
    dags[dag] = None
    if len(dags) > DELETED_KEPT:
        del dags[next(iter(dags))]


def status_message(
    dags: Iterable[str], locations: Iterable[tuple[str, Address]]
) -> internal_pb2.SchedulerStatus:
    """What peers are told."""
    message = internal_pb2.SchedulerStatus(dags=sorted(dags))
    for function, (ip, tid) in sorted(locations):
        message.function_locations.add(name=function, ip=ip, tid=tid)
    return message


def locations_in(message: internal_pb2.SchedulerStatus) -> list[tuple[str, Address]]:
    """Where a peer says that functions are."""
    return [
        (place.name, (place.ip, place.tid)) for place in message.function_locations if place.name and place.ip
    ]
