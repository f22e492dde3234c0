"""Calls that were acknowledged and may have got lost on their way: none of them ends in silence.

The ingress notes every call that it dispatches. When an executor leaves, dies, was restarted or was cut
off, or this ingress itself was killed, those that may have been lost with it go to the Scheduler, which
writes the error value where nobody will write a result. What was noted is bounded
(`scheduler.noted_calls_bytes`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Final

from ray_sched.actors import names
from ray_sched.actors.doubts import Doubts, Due, unsent_by_the_dead
from ray_sched.actors.ledger import Ledger
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.config import MAX_SHARDS, Config
from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address
from ray_sched.core.open_calls import Doubtful, OpenCalls, Told, judge
from ray_sched.core.partition import FRONT, Part
from ray_sched.errors import LatticeMismatchError, NotRunningError
from ray_sched.kvs.client import KvsClient
from ray_sched.last_resort import last_resort
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire import cloudburst_pb2 as cb

log = logging.getLogger(__name__)

BATCH: Final = 10_000
LOST: Final = (
    "no executor could take the call, or it was lost when one or the scheduler ended; it may have run"
)


class LostCalls:
    """The ingress's side. For the loop's thread, but for what a lane runs."""

    def __init__(
        self,
        config: Config,
        scheduler: Link,
        mailbox: Mailbox[Callable[[float], None]],
        part: Part | None = None,
    ) -> None:
        """Raises ConfigError, OSError. The ports have to be bound: whoever has them has the file.

        With shards (see `sharded_ingress`) each has its file, and so has the front.
        """
        self._scheduler = scheduler
        # What the Scheduler waits for itself: the store, its executors, and the Policy after a restart.
        waits = config.scheduler.request_timeout_s, config.answer_timeout_s, config.scheduler.table_timeout_s
        self._timeout_s = sum(waits)
        self._mailbox = mailbox
        self._lane = Lane("lost-calls")
        limits, now = config.scheduler, time.monotonic()
        own = part.number if part is not None else FRONT
        self._ledger = Ledger(_file(config, own), limits.noted_calls_bytes, now)
        if own == FRONT:
            _adopt(config, self._ledger, part.shards if part is not None else 0, now)
        timeouts_s = limits.lost_call_timeout_s, limits.executor_timeout_s
        doubts = self._doubts = Doubts(self._ledger, now, *timeouts_s)
        self._unwatched = 0
        self.note, self.gone, self.unsent = self._ledger.add_all, doubts.gone, doubts.unsent
        self.reconnected = doubts.reconnected

    def tick(self, now: float) -> None:
        """Have what is due looked after, one after the other."""
        due = self._doubts.take_due(now)
        if due is not None:
            self._lane.run(lambda: self._hand_over(due))

    def close(self) -> None:
        self._lane.close()
        self._ledger.close()

    def _hand_over(self, due: Due) -> None:
        done = True
        doubtful = due.doubtful()
        still_open: list[Doubtful] = []
        try:
            for start in range(0, len(doubtful), BATCH):
                batch = doubtful[start : start + BATCH]
                still_open += self._scheduler.get("settle_calls", batch, timeout_s=self._timeout_s)
        except Exception as error:
            log.warning("calls=%d that may be lost are looked after later: %s", len(doubtful), error)
            done = False
        self._mailbox.put(lambda now: self._looked_after(done, still_open, now))

    def _looked_after(self, done: bool, still_open: list[Doubtful], now: float) -> None:
        self._doubts.looked_after(done, still_open, now)
        if self._doubts.unwatched > self._unwatched:
            lost = self._doubts.unwatched - self._unwatched
            self._unwatched = self._doubts.unwatched
            log.warning("calls=%d may be lost, and there is no room to look after them again", lost)


def _adopt(config: Config, ledger: Ledger, shards: int, now: float) -> None:
    """Note what was noted by shards and is not theirs to look after: what comes back to the front, such as a
    continuation, and may have come to one that was killed; and all of shards that are there no more."""
    young = now - config.scheduler.lost_call_timeout_s
    for number in range(1, MAX_SHARDS + 1):
        file = _file(config, number)
        if not file.exists():
            continue
        for call in unsent_by_the_dead(file.read_bytes(), young):
            if call.at <= now and (call.continued or number > shards):
                ledger.add((call.at, call.executors, tuple(call.to), True))
        if number > shards:
            file.unlink()


def _file(config: Config, shard: int) -> Path:
    return runtime_file(config, "calls" if shard == FRONT else f"calls-{shard}")


def settle(
    config: Config, kvs: KvsClient, doubtful: Iterable[Doubtful], known: Collection[Address]
) -> list[Doubtful]:
    """The Scheduler's side: write the error value for each call that is lost; gives those that are open.

    Of a foreign executor nobody can ask what it is at: what it still gives outranks the error. `known` are
    the executors of the table.
    Raises KvsError, TimedOutError.
    """
    calls = list(doubtful)
    addresses = {address for call in calls for address in call.executors}
    if any(call.continued for call in calls):
        addresses.update(known)
    verdict = judge(calls, _ask(config, addresses, known))
    errors = dict(last_resort(call.to, LOST) for call in verdict.lost)
    try:
        kvs.put_many(errors)
    except LatticeMismatchError:
        # Such a key has a value. Of the others nothing is known: this is one error of several, perhaps.
        for written in [kvs.put_future(key, error) for key, error in errors.items()]:
            with contextlib.suppress(LatticeMismatchError):
                written.result()
    return verdict.open


def _ask(config: Config, addresses: Iterable[Address], known: Collection[Address]) -> Told:
    """What those of them that are ours are at."""
    groups: dict[Address, str] | None = None

    def find(address: Address) -> Any:
        nonlocal groups
        role = names.executor_role(*address)
        try:
            return names.find_for_actor(config.group_name, role)
        except NotRunningError:
            if groups is None:
                groups = names.executors()
            if address not in groups:
                raise
            return names.find_for_actor(groups[address], role)  # another group of this cluster has it

    asked: dict[Future[OpenCalls], Address] = {}
    unheard: set[Address] = set()
    foreign: set[Address] = set()
    for address in addresses:
        try:
            asked[find(address).open_calls.remote().future()] = address
        except NotRunningError:
            if address in known:
                foreign.add(address)
        except AttributeError:  # an actor of an older version
            unheard.add(address)
    done, late = wait(asked, timeout=config.answer_timeout_s)
    # One that ends leaves what it had taken on to the next one, which answers that.
    unheard.update(asked[future] for future in done if future.exception() is not None)
    told = {asked[future]: future.result() for future in done if future.exception() is None}
    unsure = {asked[future] for future in late} | {address for address, calls in told.items() if calls.more}
    return Told(list(told.values()), unsure, unheard | foreign, foreign)


def destination_of(kind: str, message: bytes) -> Destination | None:
    """Where the result of what could not be sent is waited for."""
    if kind == "call":
        return Destination.of_call(cb.FunctionCall.FromString(message))
    if kind == "schedule":
        return Destination.of_error(cb.DagSchedule.FromString(message))
    return None
