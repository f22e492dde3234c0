"""Calls that were acknowledged and may have got lost on their way: none of them ends in silence.

The ingress notes every call that it dispatches. When an executor leaves, dies or was restarted, or this
ingress itself was killed, those that may have been lost with it go to the Scheduler, which writes the
error value where nobody will write a result. What was noted is bounded: `scheduler.noted_calls_bytes`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import ray

from ray_sched.actors import names
from ray_sched.actors.ledger import Ledger, Noted, read
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.config import Config
from ray_sched.core.destination import Destination
from ray_sched.core.executors import Address
from ray_sched.errors import LatticeMismatchError, NotRunningError
from ray_sched.kvs.client import KvsClient
from ray_sched.last_resort import last_resort
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire import cloudburst_pb2 as cb

log = logging.getLogger(__name__)

GRACE_S: Final = 2.0
"""How long what still was on its way to an executor has to arrive at the one that takes its place."""
BEFORE_DEATH_S: Final = 5.0
"""A killed ingress had sent what is older; but not what comes back to it, as a continuation does."""
BATCH: Final = 2000
MAX_UNSENT: Final = 50_000
ANSWER_S: Final = 2.0
LOST: Final = "the call was lost when an executor or the scheduler ended; it may have run"

Doubtful = tuple[tuple[Address, ...], Destination]
"""Who was sent a call, and where its result is waited for."""


class LostCalls:
    """The ingress's side. For the loop's thread, but for what a lane runs."""

    def __init__(self, config: Config, scheduler: Link, mailbox: Mailbox[Callable[[float], None]]) -> None:
        """Raises ConfigError, OSError. The ports have to be bound: whoever has them has the file."""
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._timeout_s = config.scheduler.lost_call_timeout_s
        self._lane = Lane("lost-calls")
        size = config.scheduler.noted_calls_bytes
        self._ledger = Ledger(runtime_file(config, "calls"), size)
        self._past = self._ledger.copy()
        """What a killed process before this one noted, until it was looked through."""
        self._due_at = time.monotonic() + GRACE_S
        self._gone: dict[Address, float] = {}
        self._unsent: dict[Destination, None] = {}
        self._asking = False
        self.note = self._ledger.add

    def gone(self, address: Address, now: float) -> None:
        """An executor is not the one that it was."""
        self._gone[address] = now + GRACE_S

    def unsent(self, to: Destination) -> None:
        """This call went nowhere."""
        if len(self._unsent) < MAX_UNSENT:
            self._unsent[to] = None

    def tick(self, now: float) -> None:
        """Have what is due looked through, one after the other."""
        if self._asking:
            return
        due = {address for address, at in self._gone.items() if now >= at}
        past = self._past if now >= self._due_at else b""
        if not (due or past or self._unsent):
            return
        self._asking = True
        unsent, self._unsent = self._unsent, {}
        noted = self._ledger.copy() if due else b""
        self._lane.run(lambda: self._hand_over(past, noted, due, list(unsent), now))

    def close(self) -> None:
        self._lane.close()
        self._ledger.close()

    def _hand_over(
        self, past: bytes, noted: bytes, due: set[Address], unsent: list[Destination], now: float
    ) -> None:
        doubtful: list[Doubtful] = [((), to) for to in unsent]
        young = now - self._timeout_s
        doubtful += [
            (call.executors, call.to)
            for call in read(noted)
            if call.at > young and not due.isdisjoint(call.executors)
        ]
        # What is not of the past is of the machine's time before its last start.
        doubtful += _unsent_by_the_dead([call for call in read(past) if call.at <= now], young)
        done = True
        try:
            for start in range(0, len(doubtful), BATCH):
                self._scheduler.get("settle_calls", doubtful[start : start + BATCH], timeout_s=60.0)
        except Exception as error:
            log.warning("calls=%d that may be lost are looked after later: %s", len(doubtful), error)
            done = False

        def handed_over(now: float) -> None:
            self._asking = False
            if done:
                self._gone = {a: at for a, at in self._gone.items() if a not in due or at > now}
                self._past = b"" if past else self._past
            else:
                self._unsent.update(dict.fromkeys(unsent))

        self._mailbox.put(handed_over)


def _unsent_by_the_dead(calls: list[Noted], young: float) -> list[Doubtful]:
    last = max((call.at for call in calls), default=0.0)
    return [
        (call.executors, call.to)
        for call in calls
        if call.at > young and (call.continued or call.at > last - BEFORE_DEATH_S)
    ]


def settle(config: Config, kvs: KvsClient, doubtful: Iterable[Doubtful]) -> int:
    """The Scheduler's side: write the error value for each call that none of our executors is at.

    Returns for how many. Of a foreign executor nobody can ask that: what it still gives outranks the error.
    Raises KvsError, TimedOutError.
    """
    calls = list(doubtful)
    held = _held(config, {address for executors, _ in calls for address in executors})
    lattices = dict(last_resort(to, LOST) for _, to in calls if to.key not in held)
    try:
        kvs.put_many(lattices)
    except LatticeMismatchError as error:  # such a key has a value
        log.info("%s", error)
    return len(lattices)


def _held(config: Config, addresses: set[Address]) -> set[str]:
    """Where the open calls of those executors that are ours go."""
    refs: list[Any] = []
    for address in addresses:
        try:
            executor = names.find(config.group_name, names.executor_role(*address))
        except NotRunningError:
            continue
        refs.append(executor.open_keys.remote())
    held: set[str] = set()
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_S) if refs else ([], [])
    for ref in done:
        try:
            held.update(ray.get(ref))
        except ray.exceptions.RayError:
            continue  # it ends: the next one answers what this one had taken on
    return held


def destination_of(kind: str, message: bytes) -> Destination | None:
    """Where the result of what could not be sent is waited for."""
    if kind == "call":
        return Destination.of_call(cb.FunctionCall.FromString(message))
    if kind == "schedule":
        return Destination.of_error(cb.DagSchedule.FromString(message))
    return None
