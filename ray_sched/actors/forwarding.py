"""What the Ingress hands on: requests to the Scheduler, events to the Policy.

Both belong to the loop's thread; answers come back through its mailbox.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ray_sched.actors.front import Drop, Outbox, Peer
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.messages import Decision, Event, Relieved, Seen, Send, StatusSeen, Suspected
from ray_sched.actors.telling import RequestIds
from ray_sched.config import SchedulerConfig
from ray_sched.core.executor import Address
from ray_sched.core.history import Ring, serving
from ray_sched.errors import NoResourcesError
from ray_sched.metrics import Histogram
from ray_sched.wire import ports
from ray_sched.wire.codec import Reply, error_name, refusal

MAX_FORWARDED: Final = 512
"""Calls, and likewise requests of each other kind, that the Scheduler may have before it; more are refused
at once."""
AGAIN_S: Final = 0.2
"""After which those ask again that could not be decided, and get no reply."""
MAX_FORWARDED_BYTES: Final = 512 * 2**20
"""What they may come to."""
FLUSH_S: Final = 0.02
"""How long an event may wait for others to go with it."""
MAX_EVENTS: Final = 50_000
"""Events that wait for a Policy that does not answer; the oldest go."""
METHODS: Final = {
    ports.FUNCTION_CALL: "decide",
    ports.DAG_CALL: "decide",
    ports.CALL_QUEUE: "decide",
    ports.CONTINUATION: "decide",
    ports.FUNCTION_CREATE: "request_function",
    ports.LIST: "request_list",
    ports.DAG_CREATE: "request_dag",
    ports.DAG_DELETE: "request_delete",
}
"""What the Scheduler is asked. Requests of one kind wait for their like alone: none starves another."""

LoopMailbox = Mailbox[Callable[[float], None]]


@dataclass(frozen=True)
class Forwarded:
    """A request that waits for the Scheduler; without a peer nobody waits for a reply."""

    peer: Peer | None
    deadline: float
    timeout_s: float
    unheard: tuple[int, bytes] | None
    """Port and body of one without a peer."""
    id: str
    """By which it can be asked for; none for a call, which has one of its own."""


class _Kind:
    """The requests that one method of the Scheduler has yet to answer, also those refused meanwhile."""

    def __init__(self, method: str, threads: int) -> None:
        self.method = method
        # A call of an actor method costs its caller; in Ray's local mode it lasts as long as the method.
        self.lane = Lane(method, threads)
        self.unanswered = 0
        self.bytes = 0

    def has_room(self, size: int) -> bool:
        return self.unanswered < MAX_FORWARDED and (
            self.bytes + size <= MAX_FORWARDED_BYTES or not self.unanswered
        )


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
        note: Callable[[tuple[Send, ...], float], None],
        refused_unheard: Callable[[int, bytes], None],
        story: Ring,
    ) -> None:
        """`note` is told what is going to be sent; `refused_unheard` of refused requests without a peer; the
        `story` of when each request came, and how it was answered."""
        self._config = config
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._counts = counts
        self._out = out
        self._answer = answer
        self._note = note
        self._refused_unheard = refused_unheard
        kinds = {method: _Kind(method, config.request_threads) for method in METHODS.values()}
        self._kinds = {port: kinds[method] for port, method in METHODS.items()}
        self._story = story
        self._ids = RequestIds()
        self._cookies = itertools.count()
        self._waiting: dict[int, Forwarded] = {}
        self._again: deque[tuple[float, Forwarded]] = deque()
        """What is to be asked again, and when."""
        self.took = Histogram("forwarded")

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    def forward(self, port: int, body: bytes, peer: Peer | None, now: float) -> None:
        """Ask the Scheduler; the reply goes out later. Raises NoResourcesError when too many wait already."""
        kind = self._kinds[port]
        if not kind.has_room(len(body)):
            if peer is None:
                self._refused_unheard(port, body)
            raise NoResourcesError(
                f"the scheduler has {kind.unanswered} such requests to answer already: try again"
            )
        # Whoever gets no reply can wait: what they asked for is better late than lost.
        soon = kind.method == "decide" and peer is not None
        timeout_s = self._config.forward_timeout_s if soon else self._config.request_timeout_s
        request = "" if kind.method == "decide" else self._ids.next()
        unheard = None if peer is not None else (port, body)
        self._tell(request, now, "a request came to port {}, and was handed to the Scheduler", port)
        self._counts["forwarded"] += 1
        self._ask(port, body, Forwarded(peer, now + timeout_s, timeout_s, unheard, request))

    def _ask(self, port: int, body: bytes, request: Forwarded) -> None:
        kind, size, cookie = self._kinds[port], len(body), next(self._cookies)
        self._waiting[cookie] = request
        kind.unanswered += 1
        kind.bytes += size

        def answered(decision: Decision | None, error: BaseException | None) -> None:
            self._mailbox.put(lambda now: self._decided(cookie, kind, size, decision, error, now))

        # Never more than the lane has room for.
        asked = port, body, request.deadline, request.id
        kind.lane.ask(self._scheduler, kind.method, asked, answered)

    def sweep(self, now: float) -> None:
        """Refuse what has waited too long, and ask again what is due."""
        while self._again and now >= self._again[0][0]:
            _, request = self._again.popleft()
            assert request.unheard is not None
            self._ask(*request.unheard, request)
        for cookie in [c for c, request in self._waiting.items() if now >= request.deadline]:
            request = self._waiting.pop(cookie)
            waited = f"the scheduler did not answer within {request.timeout_s:g} s: try again"
            self._refuse(request, refusal(NoResourcesError(waited)), now)

    def close(self) -> None:
        for kind in self._kinds.values():
            kind.lane.close()

    def _decided(
        self,
        cookie: int,
        kind: _Kind,
        size: int,
        decision: Decision | None,
        error: BaseException | None,
        now: float,
    ) -> None:
        kind.unanswered -= 1
        kind.bytes -= size
        request = self._waiting.pop(cookie, None)
        if request is None:  # it was refused meanwhile: what was decided for it must not happen
            self._counts["late_decisions"] += 1
            return
        if decision is None:
            gone = NoResourcesError(f"the scheduler is not there, try again: {error}")
            self._refuse(request, refusal(gone), now)
            return
        may_wait = request.unheard is not None and now + AGAIN_S < request.deadline
        if decision.again and may_wait and len(self._again) < MAX_FORWARDED:
            self._again.append((now + AGAIN_S, request))
            return
        self.took.observe(now - (request.deadline - request.timeout_s))
        self._note(decision.sends, now)
        self._out.put_all(decision.sends)
        for address, message in decision.pushes:
            self._out.push(address, message)
        if decision.reply.reason:
            self._refuse(request, decision.reply, now)
        else:
            self._answer(request.peer, decision.reply)
            self._tell(request.id, now, "the request is answered")

    def _refuse(self, request: Forwarded, reply: Reply, now: float) -> None:
        self._answer(request.peer, reply)
        self._tell(request.id, now, "the request is refused: {}", error_name(reply))
        if request.unheard is not None:
            self._refused_unheard(*request.unheard)

    def _tell(self, request: str, now: float, what: str, *facts: object) -> None:
        if request:
            with serving(request):
                self._story.note(now, (), what, *facts)


class EventForwarding:
    """Events for the Policy, in batches, in order; they are kept while it does not answer.

    The batches are numbered: a Ray call that fails while both actors live loses one, and the Policy sees it.
    """

    def __init__(self, policy: Link, method: str, lane: Lane, mailbox: LoopMailbox, drop: Drop) -> None:
        """`method` of the Policy's takes them."""
        self._policy = policy
        self._method = method
        self._lane = lane
        self._mailbox = mailbox
        self._drop = drop
        self._events: list[Event] = []
        self._seen: dict[Address, float] = {}
        """Whose statuses changed nothing since the last beat, and when the latest came."""
        self._urgent = False
        self._handing_over = False
        self._next_flush = 0.0
        self._sender = random.SystemRandom().getrandbits(48)
        self._number = 0
        """Of the latest batch that was handed over, or given up."""

    def add(self, event: Event, *, urgent: bool = False) -> None:
        self._events.append(event)
        self._urgent |= urgent

    def status(self, event: StatusSeen) -> None:
        """A status that changed something; it says all that an earlier one did."""
        self._seen.pop(event.address, None)
        self.add(event)

    def suspected(self, address: Address) -> None:
        """Messages to it pile up. A status that came before is told first, so as not to be taken for one that
        came since."""
        seen_at = self._seen.pop(address, None)
        if seen_at is not None:
            self.add(Seen((address,), seen_at))
        self.add(Suspected(address))

    def relieved(self, address: Address) -> None:
        """It takes them again."""
        self.add(Relieved(address))

    def seen(self, address: Address, now: float) -> None:
        """A status changed nothing: one word about many of these is enough."""
        self._seen[address] = now

    def beat(self, now: float) -> None:
        """Who was seen, be it nobody: the Policy hears that this ingress listens."""
        self.add(Seen(tuple(self._seen), now))
        self._seen.clear()
        if len(self._events) > MAX_EVENTS:
            self._drop("events", f"the policy does not answer, {len(self._events)} events wait")
            del self._events[: len(self._events) - MAX_EVENTS]
            self._number += 1  # as if they had been a batch that got lost

    def flush_if_due(self, now: float) -> None:
        if not self._events or self._handing_over or not (self._urgent or now >= self._next_flush):
            return
        self._next_flush = now + FLUSH_S
        self._urgent = False
        events, self._events = self._events, []
        self._handing_over = True
        batch = (self._sender, self._number + 1)

        def hand_over() -> None:
            taken = self._policy.tell(self._method, events, batch)
            self._mailbox.put(lambda now: self._handed_over(events, taken))

        if not self._lane.run(hand_over):
            self._handed_over(events, False)

    def _handed_over(self, events: list[Event], taken: bool) -> None:
        self._handing_over = False
        if taken:
            self._number += 1
        else:
            self._events = events + self._events
