"""What the Ingress hands on: requests to the Scheduler, events to the Policy.

Both belong to the loop's thread; answers come back through its mailbox.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ray_sched.actors.front import Drop, Outbox, Peer
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.messages import Decision, Event, Seen
from ray_sched.config import SchedulerConfig
from ray_sched.core.executors import Address
from ray_sched.errors import NoResourcesError
from ray_sched.wire import ports
from ray_sched.wire.codec import Reply, refusal

MAX_FORWARDED: Final = 512
"""Calls, and likewise other requests, that the Scheduler may have before it; more are refused at once."""
FLUSH_S: Final = 0.02
"""How long an event may wait for others to go with it."""
MAX_EVENTS: Final = 50_000
"""Events that wait for a Policy that does not answer; the oldest go."""
CALLS: Final = frozenset({ports.FUNCTION_CALL, ports.DAG_CALL, ports.CALL_QUEUE, ports.CONTINUATION})

LoopMailbox = Mailbox[Callable[[float], None]]


@dataclass(frozen=True)
class Forwarded:
    """A request that waits for the Scheduler; without a peer nobody waits for a reply."""

    peer: Peer | None
    deadline: float
    timeout_s: float


class RequestForwarding:
    """Requests that the Scheduler decides, each answered once: by it, or by its time-out."""

    def __init__(
        self,
        config: SchedulerConfig,
        scheduler: Link,
        mailbox: LoopMailbox,
        counts: Counter[str],
        out: Outbox,
        answer: Callable[[Peer | None, Reply], None],
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._counts = counts
        self._out = out
        self._answer = answer
        # A call of an actor method costs its caller; in Ray's local mode it lasts as long as the method.
        self._lane = Lane("requests", config.request_threads)
        self._cookies = itertools.count()
        self._waiting: dict[int, Forwarded] = {}
        self._unanswered = {True: 0, False: 0}
        """Calls and other requests that the Scheduler has yet to answer, also those refused meanwhile."""

    def __len__(self) -> int:
        return len(self._waiting)

    def forward(self, port: int, body: bytes, peer: Peer | None, now: float) -> None:
        """Ask the Scheduler; the reply goes out later. Raises NoResourcesError when too many wait already."""
        is_call = port in CALLS
        if self._unanswered[is_call] >= MAX_FORWARDED:
            raise NoResourcesError(f"the scheduler has {MAX_FORWARDED} requests to answer already: try again")
        # Whoever gets no reply can wait: what they asked for is better late than lost.
        soon = is_call and peer is not None
        timeout_s = self._config.forward_timeout_s if soon else self._config.request_timeout_s
        cookie = next(self._cookies)
        deadline = now + timeout_s
        self._waiting[cookie] = Forwarded(peer, deadline, timeout_s)
        self._unanswered[is_call] += 1
        self._counts["forwarded"] += 1
        self._lane.ask(
            self._scheduler,
            "decide" if is_call else "request",
            (port, body, deadline),
            lambda decision, error: self._mailbox.put(
                lambda now: self._decided(cookie, is_call, decision, error)
            ),
        )

    def sweep(self, now: float) -> None:
        """Refuse what has waited too long."""
        for cookie in [c for c, request in self._waiting.items() if now >= request.deadline]:
            request = self._waiting.pop(cookie)
            waited = f"the scheduler did not answer within {request.timeout_s:g} s: try again"
            self._answer(request.peer, refusal(NoResourcesError(waited)))

    def close(self) -> None:
        self._lane.close()

    def _decided(
        self, cookie: int, is_call: bool, decision: Decision | None, error: BaseException | None
    ) -> None:
        self._unanswered[is_call] -= 1
        request = self._waiting.pop(cookie, None)
        if request is None:  # it was refused meanwhile: what was decided for it must not happen
            self._counts["late_decisions"] += 1
            return
        if decision is None:
            gone = NoResourcesError(f"the scheduler is not there, try again: {error}")
            self._answer(request.peer, refusal(gone))
            return
        self._out.put_all(decision.sends)
        for address, message in decision.pushes:
            self._out.push(address, message)
        self._answer(request.peer, decision.reply)


class EventForwarding:
    """Events for the Policy, in batches, in order; they are kept while it does not answer."""

    def __init__(self, policy: Link, lane: Lane, mailbox: LoopMailbox, drop: Drop) -> None:
        self._policy = policy
        self._lane = lane
        self._mailbox = mailbox
        self._drop = drop
        self._events: list[Event] = []
        self._seen: dict[Address, None] = {}
        self._urgent = False
        self._handing_over = False
        self._next_flush = 0.0

    def add(self, event: Event, *, urgent: bool = False) -> None:
        self._events.append(event)
        self._urgent |= urgent

    def seen(self, address: Address) -> None:
        """A status changed nothing: one word about many of these is enough."""
        self._seen[address] = None

    def beat(self, now: float) -> None:
        """Who was seen, be it nobody: the Policy hears that this ingress listens."""
        self.add(Seen(tuple(self._seen), now))
        self._seen.clear()

    def flush_if_due(self, now: float) -> None:
        if not self._events or self._handing_over or not (self._urgent or now >= self._next_flush):
            return
        self._next_flush = now + FLUSH_S
        self._urgent = False
        if len(self._events) > MAX_EVENTS:
            self._drop("events", f"the policy does not answer, {len(self._events)} events wait")
            del self._events[: len(self._events) - MAX_EVENTS]
        events, self._events = self._events, []
        self._handing_over = True

        def hand_over() -> None:
            taken = self._policy.tell("on_events", events)
            self._mailbox.put(lambda now: self._handed_over(events, taken))

        self._lane.run(hand_over)

    def _handed_over(self, events: list[Event], taken: bool) -> None:
        self._handing_over = False
        if not taken:
            self._events = events + self._events
