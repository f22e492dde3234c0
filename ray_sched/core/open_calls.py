"""Whether a call that may have been lost is: how it stands at the executors that it was sent to.

A call is lost where none of them is at it. One that waits at executors for what others are to send them
is lost, too, once nobody is at it who could: where two looks in a row find it waiting for the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ray_sched.core.destination import Destination
from ray_sched.core.executors import Address

Waits = tuple[str, int]
"""A function of a call that waits, and how many of its triggers are there."""


class OpenCalls(NamedTuple):
    """The calls that an executor was sent and that are not done, by where their results go: keys, or ids."""

    active: list[str]
    """What it does, or will do without hearing from anybody."""
    waiting: list[tuple[str, Waits]]


class Doubtful(NamedTuple):
    """A call that may be lost."""

    executors: tuple[Address, ...]
    """Who was sent it."""
    to: Destination
    stood: tuple[Waits, ...] = ()
    """What it waited for at the last look."""


class Verdict(NamedTuple):
    lost: list[Doubtful]
    open: list[Doubtful]
    """To be looked at again."""


def judge(calls: Iterable[Doubtful], told: Iterable[OpenCalls], unheard: Collection[Address]) -> Verdict:
    """Out of what its executors told; `unheard` are those that may be at calls and told nothing.

    What waits is left alone while one of those has a part in it, and what nobody knows is lost all the same.
    """
    active: set[str] = set()
    waiting: dict[str, list[Waits]] = {}
    for calls_at_one in told:
        active.update(calls_at_one.active)
        for key, waits in calls_at_one.waiting:
            waiting.setdefault(key, []).append(waits)
    verdict = Verdict([], [])
    for call in calls:
        stands = tuple(sorted(waiting.get(call.to.key, ())))
        if call.to.key in active or (stands and any(address in unheard for address in call.executors)):
            verdict.open.append(call._replace(stood=()))
        elif stands and stands != call.stood:
            verdict.open.append(call._replace(stood=stands))
        else:
            verdict.lost.append(call)
    return verdict
