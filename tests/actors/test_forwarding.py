"""What the ingress hands on: each request is answered once, late answers or not, and no event is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest
import zmq

from ray_sched.actors.forwarding import (
    AGAIN_S,
    FLUSH_S,
    MAX_EVENTS,
    MAX_FORWARDED,
    EventForwarding,
    RequestForwarding,
)
from ray_sched.actors.front import Outbox, Peer
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.messages import Decision, Event, PinAnswered, Relieved, Seen, Send, Suspected
from ray_sched.config import Config
from ray_sched.core.executor import Address
from ray_sched.core.history import Ring
from ray_sched.errors import NoResourcesError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from ray_sched.wire.codec import OK, Reply, refusal
from ray_sched.wire.sockets import batching_context
from tests.system.conftest import eventually

HOST = "127.0.38.1"
EXECUTOR: Address = ("127.0.38.2", 0)
ANSWERS = f"tcp://{HOST}:9000"
WAIT_MS = 10_000
LIMITS = Config().scheduler
SENDS: tuple[Send, ...] = ((*EXECUTOR, "schedule", b"a schedule"),)


class Asked:
    """In the place of the link to an actor: keeps what it is asked, until the test answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.futures: list[Future[Any]] = []
        self.has_room = True

    def ask(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.futures.append(future)
        self.calls.append((method, args))
        return future

    def tell(self, method: str, *args: Any) -> bool:
        if self.has_room:
            self.calls.append((method, args))
        return self.has_room


class Setting:
    def __init__(self) -> None:
        self.actor = Asked()
        self.mailbox: Mailbox[Callable[[float], None]] = Mailbox()
        self.counts: Counter[str] = Counter()
        self.answers: list[tuple[Peer | None, Reply]] = []
        self.noted: list[tuple[Send, ...]] = []
        self.unheard: list[tuple[int, bytes]] = []
        self.dropped: Counter[str] = Counter()
        self.context = batching_context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self.out = Outbox(self.context, ports.CLASSIC, lambda address: None, self._drop)
        self.story = Ring(100)
        self.requests = RequestForwarding(
            LIMITS,
            cast(Link, self.actor),
            self.mailbox,
            self.counts,
            self.out,
            lambda peer, reply: self.answers.append((peer, reply)),
            lambda sends, now: self.noted.append(sends),
            lambda port, body: self.unheard.append((port, body)),
            self.story,
        )
        self.lane = Lane("events")
        self.events = EventForwarding(
            cast(Link, self.actor), "on_events", self.lane, self.mailbox, self._drop
        )
        self.peer = (self._socket(zmq.ROUTER, f"tcp://{HOST}:9001"), [b""], False)

    def _drop(self, what: str, why: object) -> None:
        self.dropped[what] += 1

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        socket.linger, socket.rcvtimeo = 0, WAIT_MS
        socket.bind(address)
        self._sockets.append(socket)
        return socket

    def receiver(self, address: str) -> zmq.Socket[bytes]:
        return self._socket(zmq.PULL, address)

    def asked(self, number: int) -> None:
        """So many requests have reached the actor: lanes have threads of their own."""
        eventually(lambda: len(self.actor.futures) == number, f"{number} requests")

    def answer(self, number: int, decision: Decision) -> None:
        self.actor.futures[number].set_result(decision)

    def turn(self, now: float) -> None:
        """What the loop does with what comes back, once it has: lanes have threads of their own."""
        acts: list[Callable[[float], None]] = []
        eventually(lambda: bool(acts.extend(self.mailbox.take()) or acts), "something comes back")
        for act in acts:
            act(now)
        self.out.flush(now)

    def refusals(self) -> list[tuple[Peer | None, int]]:
        found = [(peer, cb.GenericResponse.FromString(reply.body)) for peer, reply in self.answers]
        assert not any(response.success for _, response in found)
        return [(peer, response.error) for peer, response in found]

    def close(self) -> None:
        self.requests.close()
        self.lane.close()
        self.out.close()
        for socket in self._sockets:
            socket.close()
        self.context.destroy(0)
        self.mailbox.close()


@pytest.fixture
def ingress() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


def test_what_the_scheduler_decides_is_sent_and_answered(ingress: Setting) -> None:
    executor, client = ingress.receiver("tcp://127.0.38.2:4030"), ingress.receiver(ANSWERS)
    ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 100.0)
    ingress.asked(1)
    deadline = 100.0 + LIMITS.forward_timeout_s
    assert ingress.actor.calls == [("decide", (ports.DAG_CALL, b"a call", deadline, ""))]
    ingress.answer(0, Decision(OK, SENDS, ((ANSWERS, b"a value"),)))
    ingress.turn(100.1)
    assert executor.recv() == b"a schedule"
    assert client.recv() == b"a value"
    assert ingress.answers == [(ingress.peer, OK)]
    assert ingress.noted == [SENDS]  # before it is sent: should this process end now, somebody knows of it
    ingress.requests.sweep(1e9)
    assert len(ingress.answers) == 1 and len(ingress.requests) == 0


def test_what_is_decided_after_its_time_out_does_not_happen(ingress: Setting) -> None:
    ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 100.0)
    ingress.asked(1)
    ingress.requests.sweep(100.0 + LIMITS.forward_timeout_s - 0.01)
    assert ingress.answers == []
    ingress.requests.sweep(100.0 + LIMITS.forward_timeout_s)
    assert ingress.refusals() == [(ingress.peer, cb.NO_RESOURCES)]
    ingress.answer(0, Decision(OK, SENDS, ((ANSWERS, b"a value"),)))
    ingress.turn(101.0)
    ingress.requests.sweep(1e9)
    assert len(ingress.answers) == 1
    assert ingress.noted == []
    assert ingress.counts["late_decisions"] == 1


@pytest.mark.parametrize("how", ["refused", "timed out", "not there"])
def test_who_waits_for_a_result_is_told_of_what_nobody_hears_refused(ingress: Setting, how: str) -> None:
    ingress.requests.forward(ports.CONTINUATION, b"a continuation", None, 100.0)
    ingress.asked(1)
    if how == "refused":
        ingress.answer(
            0, Decision(Reply(cb.GenericResponse(error=cb.NO_RESOURCES).SerializeToString(), "full"))
        )
        ingress.turn(101.0)
    elif how == "not there":
        ingress.actor.futures[0].set_exception(NoResourcesError("it is being started anew"))
        ingress.turn(101.0)
    else:  # it has as long as any request that nobody waits for
        ingress.requests.sweep(100.0 + LIMITS.request_timeout_s - 0.01)
        assert ingress.unheard == []
        ingress.requests.sweep(100.0 + LIMITS.request_timeout_s)
    assert ingress.refusals() == [(None, cb.NO_RESOURCES)]
    assert ingress.unheard == [(ports.CONTINUATION, b"a continuation")]


NOT_NOW = Decision(refusal(NoResourcesError("no lease")), again=True)


def test_who_gets_no_reply_asks_again_while_nothing_can_be_decided(ingress: Setting) -> None:
    """Else a continuation would fail because the Policy's heartbeat came late."""
    ingress.requests.forward(ports.CONTINUATION, b"a continuation", None, 0.0)
    ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 0.0)
    ingress.asked(2)
    for number in range(2):
        ingress.answer(number, NOT_NOW)
    while not ingress.answers:
        ingress.turn(0.1)
    assert ingress.refusals() == [(ingress.peer, cb.NO_RESOURCES)]
    assert (len(ingress.requests), ingress.unheard) == (1, [])
    ingress.requests.sweep(0.1 + AGAIN_S / 2)
    assert len(ingress.actor.calls) == 2
    ingress.requests.sweep(0.1 + AGAIN_S)
    ingress.asked(3)
    method, asked = ingress.actor.calls[2]
    assert (method, asked[:3]) == (
        "decide",
        (ports.CONTINUATION, b"a continuation", LIMITS.request_timeout_s),
    )
    ingress.answer(2, Decision(OK, SENDS))
    ingress.turn(0.5)
    assert (ingress.noted[-1], len(ingress.requests)) == (SENDS, 0)


def test_nobody_asks_again_for_ever(ingress: Setting) -> None:
    ingress.requests.forward(ports.CALL_QUEUE, b"a call", None, 0.0)
    ingress.asked(1)
    ingress.answer(0, NOT_NOW)
    ingress.turn(LIMITS.request_timeout_s - AGAIN_S / 2)
    assert (len(ingress.requests), ingress.unheard) == (0, [(ports.CALL_QUEUE, b"a call")])


def test_too_many_of_one_kind_are_refused_at_once_and_hold_up_no_other(ingress: Setting) -> None:
    for _ in range(MAX_FORWARDED):
        ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 100.0)
    with pytest.raises(NoResourcesError, match="such requests to answer already"):
        ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 100.0)
    assert ingress.unheard == []  # its peer hears it
    with pytest.raises(NoResourcesError):
        ingress.requests.forward(ports.CALL_QUEUE, b"a queued call", None, 100.0)
    assert ingress.unheard == [(ports.CALL_QUEUE, b"a queued call")]
    ingress.requests.forward(ports.LIST, b"", ingress.peer, 100.0)
    # What was refused for its time-out is still before the Scheduler.
    ingress.requests.sweep(101.0)
    with pytest.raises(NoResourcesError):
        ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 101.0)
    ingress.asked(MAX_FORWARDED + 1)
    ingress.answer(0, Decision(OK))
    ingress.turn(102.0)
    ingress.requests.forward(ports.DAG_CALL, b"a call", ingress.peer, 102.0)


def test_events_that_are_not_taken_wait_and_go_in_their_order(ingress: Setting) -> None:
    first, second, third = (PinAnswered(True, name) for name in ("first", "second", "third"))

    def handed_over(now: float) -> list[list[Event]]:
        ingress.events.flush_if_due(now)
        ingress.turn(now)
        return [batch for _, (batch, _) in ingress.actor.calls]

    ingress.actor.has_room = False
    ingress.events.add(first)
    assert handed_over(100.0) == []
    ingress.events.add(second)
    assert handed_over(101.0) == []
    ingress.actor.has_room = True
    ingress.events.add(third)
    assert handed_over(102.0) == [[first, second, third]]
    ingress.events.flush_if_due(103.0)
    assert len(ingress.actor.calls) == 1, "an event was told twice"


def test_an_urgent_event_waits_for_no_other(ingress: Setting) -> None:
    ingress.events.add(PinAnswered(True, "first"))
    ingress.events.flush_if_due(100.0)
    eventually(lambda: len(ingress.actor.calls) == 1, "the first")
    ingress.turn(100.0)
    ingress.events.add(PinAnswered(True, "second"))
    ingress.events.flush_if_due(100.0 + FLUSH_S / 2)
    ingress.events.add(PinAnswered(True, "third"), urgent=True)
    ingress.events.flush_if_due(100.0 + FLUSH_S / 2)
    eventually(lambda: len(ingress.actor.calls) == 2, "the urgent one")
    assert len(ingress.actor.calls[1][1][0]) == 2


def test_batches_are_numbered_so_that_the_policy_sees_what_is_lost(ingress: Setting) -> None:
    def hand_over(number: int) -> None:
        ingress.events.add(PinAnswered(True, ""), urgent=True)
        ingress.events.flush_if_due(100.0)
        eventually(lambda: len(ingress.actor.calls) == number, f"batch {number}")
        ingress.turn(100.0)

    hand_over(1)
    hand_over(2)
    ingress.events._events += [PinAnswered(True, "")] * (MAX_EVENTS + 1)
    ingress.events.beat(100.0)  # of these the oldest go
    hand_over(3)
    batches = [batch for _, (_, batch) in ingress.actor.calls]
    assert [number for _, number in batches] == [1, 2, 4]
    assert len({sender for sender, _ in batches}) == 1


def test_the_policy_hears_whose_status_changed_nothing_and_that_the_ingress_lives(ingress: Setting) -> None:
    for _ in range(3):
        ingress.events.seen(EXECUTOR, 99.9)
    ingress.events.beat(100.0)
    ingress.events.beat(100.5)
    ingress.events.flush_if_due(101.0)
    eventually(lambda: bool(ingress.actor.calls), "the batch")
    ((method, (events, _)),) = ingress.actor.calls
    assert (method, events) == ("on_events", [Seen((EXECUTOR,), 100.0), Seen((), 100.5)])


def test_a_status_that_came_before_its_executor_was_suspected_is_told_before(ingress: Setting) -> None:
    """Else the Policy takes it for the sign that the executor takes messages again."""
    other = (EXECUTOR[0], EXECUTOR[1] + 1)
    ingress.events.seen(EXECUTOR, 99.8)
    ingress.events.seen(other, 99.9)
    ingress.events.suspected(EXECUTOR)
    ingress.events.suspected(EXECUTOR)
    ingress.events.relieved(EXECUTOR)
    ingress.events.beat(100.0)
    ingress.events.flush_if_due(100.0)
    eventually(lambda: bool(ingress.actor.calls), "the batch")
    ((_, (events, _)),) = ingress.actor.calls
    suspected = Suspected(EXECUTOR)
    assert events == [
        Seen((EXECUTOR,), 99.8),
        suspected,
        suspected,
        Relieved(EXECUTOR),
        Seen((other,), 100.0),
    ]


def test_of_too_many_events_the_oldest_go(ingress: Setting) -> None:
    for number in range(MAX_EVENTS + 10):
        ingress.events.add(PinAnswered(True, f"{number}"))
    ingress.events.beat(100.0)
    ingress.events.flush_if_due(100.0)
    eventually(lambda: bool(ingress.actor.calls), "the batch")
    ((_, (batch, _)),) = ingress.actor.calls
    assert len(batch) == MAX_EVENTS
    assert batch[-2:] == [PinAnswered(True, f"{MAX_EVENTS + 9}"), Seen((), 100.0)]
    assert ingress.dropped["events"] == 1


def test_each_request_has_an_id_by_which_its_end_is_told(ingress: Setting) -> None:
    for body in (b"one", b"two", b"three"):
        ingress.requests.forward(ports.DAG_DELETE, body, ingress.peer, 100.0)
    ingress.asked(3)
    ids = [arguments[3] for _, arguments in sorted(ingress.actor.calls, key=lambda call: call[1][1])]
    one, three, two = ids
    assert len(set(ids)) == 3
    ingress.answer(next(n for n, (_, a) in enumerate(ingress.actor.calls) if a[3] == one), Decision(OK))
    ingress.turn(100.1)
    refused = Decision(refusal(NoResourcesError("none")))
    ingress.answer(next(n for n, (_, a) in enumerate(ingress.actor.calls) if a[3] == two), refused)
    ingress.turn(100.2)
    ingress.requests.sweep(1e9)
    came = f"a request came to port {ports.DAG_DELETE}, and was handed to the Scheduler (request {{}})"
    assert ingress.story.about(one) == [
        (100.0, came.format(one)), (100.1, f"the request is answered (request {one})"),
    ]  # fmt: skip
    assert ingress.story.about(two)[1:] == [
        (100.2, f"the request is refused: NO_RESOURCES (request {two})"),
    ]
    assert ingress.story.about(three)[1:] == [
        (1e9, f"the request is refused: NO_RESOURCES (request {three})"),
    ]
