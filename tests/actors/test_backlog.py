"""Calls that have to wait: in order, for a bounded time, and refused at once where it would be longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import zmq

from ray_sched.actors.backlog import FEWEST, OVERLOADED, RATE_KEPT, Backlog
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from ray_sched.wire.codec import WANTS_REASON
from tests.actors.test_ingress_loop import CONFIG, Setting

WAIT_MS = 10_000
CALLS = 8_000
"""Fewer than replies may wait for one client, and more than can be decided in 20 ms."""


class Port:
    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.bind("inproc://calls")
        self.client = self.context.socket(zmq.DEALER)
        self.client.rcvtimeo = WAIT_MS
        self.client.connect("inproc://calls")
        self.counts: Counter[str] = Counter()
        self.backlog = Backlog(1.0, self.counts)

    def ask(self, *bodies: bytes, reason: bool = False) -> None:
        for body in bodies:
            self.client.send_multipart([body, b"", body, *([WANTS_REASON] if reason else [])])

    def next(self) -> bytes:
        return self.backlog.next(self.router)[-1]


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.context.destroy(0)


def test_who_came_first_is_served_first(port: Port) -> None:
    port.ask(b"1", b"2")
    port.backlog.take_in(port.router, 0.0)
    port.ask(b"3")
    port.backlog.take_in(port.router, 0.4)
    assert [port.next() for _ in range(3)] == [b"1", b"2", b"3"]
    with pytest.raises(zmq.Again):
        port.next()


def test_newcomers_are_refused_at_once_while_the_first_in_line_has_waited_for_half_of_the_time(
    port: Port,
) -> None:
    port.ask(b"1", b"2")
    port.backlog.take_in(port.router, 0.0)
    port.ask(b"3")
    port.backlog.take_in(port.router, 0.6)
    assert port.client.recv_multipart() == [b"3", b"", OVERLOADED.body]
    assert [port.next(), port.next()] == [b"1", b"2"]
    port.ask(b"4")
    port.backlog.take_in(port.router, 0.7)
    assert port.next() == b"4"
    assert port.counts["refused_overload"] == 1


def numbers(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def test_no_more_wait_than_can_be_served_in_half_of_the_time_at_the_present_rate(port: Port) -> None:
    port.ask(*numbers(0, 300))
    port.backlog.take_in(port.router, 0.0)
    assert [port.next() for _ in range(100)] == numbers(0, 100)
    port.ask(*numbers(300, 400))
    port.backlog.take_in(port.router, 0.1)  # 100 in 0.1 s: 500 may wait
    assert len(port.backlog) == 500
    assert [port.client.recv_multipart()[0] for _ in range(100)] == numbers(600, 100)
    assert port.counts["refused_overload"] == 100
    assert [port.next() for _ in range(500)] == numbers(100, 500)


def test_those_that_were_served_before_somebody_had_to_wait_count(port: Port) -> None:
    port.ask(*numbers(0, 100))
    port.backlog.take_in(port.router, 0.0, served=60)  # in the turn that began then
    port.ask(*numbers(100, 300))
    port.backlog.take_in(port.router, 0.1)  # 60 in 0.1 s: 300 may wait
    assert len(port.backlog) == 300


def test_of_a_loop_that_stood_still_for_a_moment_it_is_not_believed_that_it_became_so_slow(
    port: Port,
) -> None:
    waiting = int(500 * RATE_KEPT)
    port.ask(*numbers(0, 100 + waiting))
    port.backlog.take_in(port.router, 0.0)
    assert [port.next() for _ in range(100)] == numbers(0, 100)
    port.backlog.take_in(port.router, 0.1)  # 100 in 0.1 s: 500 may wait
    port.ask(b"at 0.2 s")
    port.backlog.take_in(port.router, 0.2)  # none in 0.1 s
    assert port.client.recv_multipart()[0] == b"at 0.2 s"
    assert len(port.backlog) == waiting
    port.next()
    port.ask(b"in its place", b"too many")
    port.backlog.take_in(port.router, 0.2)
    assert port.client.recv_multipart()[0] == b"too many"
    assert len(port.backlog) == waiting


def test_as_many_as_a_turn_serves_may_wait_at_any_rate(port: Port) -> None:
    port.ask(b"first", b"second")
    port.backlog.take_in(port.router, 0.0)
    port.next()
    port.ask(*numbers(0, 2 * FEWEST))
    port.backlog.take_in(port.router, 0.4)
    assert len(port.backlog) == FEWEST
    assert port.counts["refused_overload"] == FEWEST + 1


def test_once_nobody_waits_everybody_may(port: Port) -> None:
    port.ask(b"first")
    port.backlog.take_in(port.router, 0.0)
    port.backlog.take_in(port.router, 0.1)
    port.next()
    port.ask(*numbers(0, 1000))
    port.backlog.take_in(port.router, 0.2)
    assert len(port.backlog) == 1000


def test_what_has_waited_too_long_is_refused_and_not_served_late(port: Port) -> None:
    port.ask(b"1")
    port.backlog.take_in(port.router, 0.0)
    port.ask(b"2", reason=True)
    port.backlog.take_in(port.router, 0.5)
    port.backlog.take_in(port.router, 1.2)  # the loop stood still
    assert port.next() == WANTS_REASON  # the second one
    reply = port.client.recv_multipart()
    assert reply == [b"1", b"", OVERLOADED.body]
    assert cb.GenericResponse.FromString(reply[2]).error == cb.NO_RESOURCES


@pytest.mark.parametrize(("waiting", "too_old"), [(64, False), (65, True)])
def test_what_the_next_turn_is_sure_to_serve_is_never_too_old(
    port: Port, waiting: int, too_old: bool
) -> None:
    """Whoever was answered in a full turn may have asked again: that alone is no overload."""
    port.ask(*numbers(0, waiting))
    port.backlog.take_in(port.router, 0.0, served=64)
    port.backlog.take_in(port.router, 1.5)  # the loop stood still
    if too_old:
        with pytest.raises(zmq.Again):
            port.next()
        assert port.counts["refused_overload"] == waiting
    else:
        assert [port.next() for _ in range(waiting)] == numbers(0, waiting)
        assert not port.counts["refused_overload"]


def test_who_asks_for_the_reason_of_a_refusal_gets_it(port: Port) -> None:
    port.ask(b"1")
    port.backlog.take_in(port.router, 0.0)
    port.ask(b"2", reason=True)
    port.backlog.take_in(port.router, 0.9)
    assert port.client.recv_multipart() == [b"2", b"", OVERLOADED.body, OVERLOADED.reason.encode()]


@pytest.mark.parametrize("comes_late", [True, False], ids=["at once", "after it waited"])
@pytest.mark.parametrize(
    ("sent", "way_back"),
    [
        ([b"", b"body"], [b""]),
        ([b"id", b"more", b"", b"body"], [b"id", b"more", b""]),
        ([b"id", b""], [b"id", b""]),
        ([b"id", b"", b""], [b"id", b""]),
        ([b"id", b"body"], None),
        ([b"body"], None),
    ],
)
def test_a_refusal_goes_the_way_back_and_what_has_none_spoils_nothing(
    port: Port, sent: list[bytes], way_back: list[bytes] | None, comes_late: bool
) -> None:
    if comes_late:
        port.ask(b"1")
        port.backlog.take_in(port.router, 0.0)
    for message in (sent, [b"next", b"", b"body"]):
        port.client.send_multipart(message)
    port.backlog.take_in(port.router, 0.9)
    if not comes_late:
        port.backlog.take_in(port.router, 2.0)
        with pytest.raises(zmq.Again):
            port.next()
    if way_back is not None:
        assert port.client.recv_multipart() == [*way_back, OVERLOADED.body]
    assert port.client.recv_multipart() == [b"next", b"", OVERLOADED.body]
    assert port.counts["refused_overload"] == 2
    assert port.counts["dropped_no_envelope"] == (way_back is None)


def test_each_of_more_calls_than_can_be_decided_is_answered_once() -> None:
    ingress = Setting(
        CONFIG.replace(host="127.0.8.22", **{"scheduler.max_wait_s": 0.02, "policy.max_recent_calls": 0})
    )
    try:
        ingress.lease()
        call = cb.DagCall(name="d", output_key="k").SerializeToString()
        with ingress.context.socket(zmq.DEALER) as crowd:
            crowd.linger = 0
            crowd.sndhwm = crowd.rcvhwm = 0
            crowd.rcvtimeo = WAIT_MS
            crowd.connect(ports.tcp(ingress.host, ports.DAG_CALL))
            for number in range(CALLS):
                crowd.send_multipart([b"%d" % number, b"", call])
            ingress.alive()
            replies = [crowd.recv_multipart() for _ in range(CALLS)]
        assert sorted(int(reply[0]) for reply in replies) == list(range(CALLS))
        accepted = sum(cb.GenericResponse.FromString(reply[2]).success for reply in replies)
        refused = ingress.loop.counts["refused_overload"]
        assert accepted and refused
    finally:
        ingress.close()
