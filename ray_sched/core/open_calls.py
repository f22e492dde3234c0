"""Whether a call that may have been lost is: how it stands at the executors that it was sent to.

A call is lost where none of them is at it. One that waits at executors for what others are to send them
is lost, too, once nobody is at it who could: where two looks in a row find it waiting for the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address

Waits = tuple[str, int]
"""A function of a call that waits, and how many of its triggers are there."""


class OpenCalls(NamedTuple):
    """The calls that an executor was sent and that are not done, by where their results go: keys, or ids."""

    active: list[str]
    """What it does, or will do without hearing from anybody."""
    waiting: list[tuple[str, Waits]]
    more: bool = False
    """It has so many that it leaves further ones in its sockets: any call may be among these."""


class Doubtful(NamedTuple):
    """A call that may be lost."""

    executors: tuple[Address, ...]
    """Who was sent it."""
    to: Destination
    continued: bool = False
    """Whether others may be at it by now: a continuation's."""
    stood: tuple[Waits, ...] | None = None
    """What it waited for at the last look; None where there was none, or somebody was at it."""
    cut: bool = False
    """The connection to an executor was cut, which else is as it was."""


class Told(NamedTuple):
    """What executors told, and who told nothing."""

    calls: list[OpenCalls]
    late: Set[Address] = frozenset()
    """They are there, and did not answer in time."""
    unheard: Set[Address] = frozenset()
    """Of these nobody knows what they are at: foreign ones, and those that are being started anew."""
    foreign: Set[Address] = frozenset()
    """Those of them of which nobody ever will."""


class Verdict(NamedTuple):
    lost: list[Doubtful]
    open: list[Doubtful]
    """To be looked at again."""


def judge(calls: Iterable[Doubtful], told: Told) -> Verdict:
    """Which calls are lost, out of what their executors told.

    What waits is left alone while one that was not heard has a part in it; what nobody is at is lost all
    the same. Where others may be at a call, nobody is at it once two looks in a row found nobody. What may be
    lost on a cut connection alone is open until its executors tell, and left alone where one never does.
    """
    active: set[str] = set()
    waiting: dict[str, list[Waits]] = {}
    for calls_at_one in told.calls:
        active.update(calls_at_one.active)
        for key, waits in calls_at_one.waiting:
            waiting.setdefault(key, []).append(waits)
    silent = {*told.late, *told.unheard}
    verdict = Verdict([], [])
    for call in calls:
        stands = tuple(sorted(waiting.get(call.to.key, ())))
        may_be_at_it = silent if stands or call.cut else told.late
        is_late = call.continued and bool(told.late)  # whoever continues it may be one of these
        if call.cut and not told.foreign.isdisjoint(call.executors):
            continue
        if call.to.key in active or is_late or not may_be_at_it.isdisjoint(call.executors):
            verdict.open.append(call._replace(stood=None))
        elif (stands or call.continued) and stands != call.stood:
            verdict.open.append(call._replace(stood=stands))
        else:
            verdict.lost.append(call)
    return verdict
