"""The ingress loop by itself, on real sockets: whatever arrives, it answers once and goes on.

There is no Ray here, so that nothing can be forwarded: that is refused, too.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ray_sched.actors import front
from ray_sched.actors.front import ANSWERED_FIRST, ANSWERED_TOGETHER, Limit, Peer, request_handler
from ray_sched.actors.ingress_loop import FAREWELL_MS, IngressLoop
from ray_sched.actors.messages import Event, StatusSeen
from ray_sched.config import Config
from ray_sched.core.dispatch import seq_at
from ray_sched.core.executor import ExecutorRecord, Status
from ray_sched.core.replication import Update
from ray_sched.values import to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.codec import WANTS_REASON, Reply
from ray_sched.wire.sockets import HIGH_WATER_MARK

HOST = "127.0.8.21"
WAIT_MS = 10_000
VECTORS = json.loads((Path(__file__).parents[1] / "wire" / "vectors.json").read_text())["messages"]


CONFIG = Config(host=HOST).replace(**{"policy.random_threshold": 0.0})
LIMITED = CONFIG.replace(
    **{
        "scheduler.max_message_bytes": 2000,
        "scheduler.max_control_bytes": 2000,
        "scheduler.max_executors": 3,
    }
)


class Setting:
    def __init__(self, config: Config = CONFIG) -> None:
        self.host = config.host
        self.failures: list[str] = []
        self.loop = IngressLoop(config, on_failure=lambda: self.failures.append("the loop ended"))
        self.loop.start()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: dict[int, zmq.Socket[bytes]] = {}

    def lease(self, seconds: float = 1000.0) -> None:
        """One executor, which holds f, and a DAG of it."""
        now = time.monotonic()
        record = ExecutorRecord(self.host, 0, False, ("f",), (), True, 0.0, now, 0.0, 1)
        dag = cb.Dag(name="d", functions=[cb.Dag.FunctionReference(name="f")])
        update = Update(1, 0, True, (record,), {}, {}, {"d": dag.SerializeToString()}, now + seconds)
        self.loop.mailbox.put(lambda now: self.loop.apply(update, now))
        assert self.loop.synced.wait(WAIT_MS / 1000)

    def ask(self, port: int, *parts: bytes) -> list[bytes]:
        socket = self.sockets.get(port)
        if socket is None:
            socket = self.sockets[port] = self.context.socket(zmq.REQ)
            socket.linger = 0
            socket.rcvtimeo = WAIT_MS
            socket.connect(ports.tcp(self.host, port))
        socket.send_multipart(parts)
        return socket.recv_multipart()

    def refused(self, port: int, *parts: bytes) -> cb.CloudburstError:
        reply = self.ask(port, *parts)[0]
        response = cb.GenericResponse.FromString(reply)
        assert not response.success
        return response.error

    def push(self, port: int, *parts: bytes) -> None:
        socket = self.sockets.get(port)
        if socket is None:
            socket = self.sockets[port] = self.context.socket(zmq.PUSH)
            socket.linger = 0
            socket.connect(ports.tcp(self.host, port))
        socket.send_multipart(parts)

    def send(self, kind: str, message: bytes) -> None:
        """As the Policy or the Scheduler does."""
        self.loop.mailbox.put(lambda now: self.loop.send(((self.host, 0, kind, message),), now))

    @contextmanager
    def executor(self, kind: str) -> Iterator[zmq.Socket[bytes]]:
        """One port of the executor."""
        socket = self.context.socket(zmq.PULL)
        socket.linger, socket.rcvtimeo = 0, WAIT_MS
        socket.bind(ports.tcp(self.host, getattr(ports.CLASSIC, kind)))
        yield socket
        socket.close()

    def counted(self, what: str, number: int = 1) -> None:
        """Wait until that was counted so often."""
        self.until(lambda: self.loop.counts[what] >= number)

    def until(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_MS / 1000
        while not so():
            assert time.monotonic() < deadline, self.loop.counts
            self.alive()

    def alive(self) -> None:
        assert self.ask(ports.CONNECT, b"") == [self.host.encode()]
        assert not self.failures

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.close()
        self.context.destroy(0)
        self.loop.stop()


def pin(function: str) -> bytes:
    return internal_pb2.PinFunction(name=function).SerializeToString()


@pytest.fixture
def ingress() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


def executors(ingress: Setting) -> int:
    return int(ingress.loop.status(time.monotonic())["executors"])


def test_calls_are_decided_under_the_lease(ingress: Setting) -> None:
    ingress.lease()
    (reply,) = ingress.ask(ports.DAG_CALL, cb.DagCall(name="d", output_key="out").SerializeToString())
    assert reply == cb.GenericResponse(success=True, response_id="out").SerializeToString()
    (reply,) = ingress.ask(
        ports.FUNCTION_CALL, cb.FunctionCall(name="f", response_key="k").SerializeToString()
    )
    assert reply == cb.GenericResponse(success=True, response_id="k").SerializeToString()
    assert ingress.loop.counts["forwarded"] == 0


@pytest.mark.parametrize("lease_s", [None, -1000.0])
def test_without_a_lease_a_call_is_not_decided_here(ingress: Setting, lease_s: float | None) -> None:
    if lease_s is not None:
        ingress.lease(lease_s)
    assert ingress.refused(ports.DAG_CALL, cb.DagCall(name="d").SerializeToString()) == cb.NO_RESOURCES
    assert (
        ingress.refused(ports.FUNCTION_CALL, cb.FunctionCall(name="f").SerializeToString()) == cb.NO_RESOURCES
    )
    assert ingress.loop.counts["forwarded"] == 2


@pytest.mark.parametrize("port", [p for p in ports.REQUEST_PORTS if p not in (ports.CONNECT, ports.LIST)])
def test_a_request_that_does_not_parse_is_refused(ingress: Setting, port: int) -> None:
    ingress.lease()
    # Without a Scheduler the loop cannot tell what is wrong with what it only hands on.
    expected = cb.EXECUTION_ERROR if port in (ports.FUNCTION_CALL, ports.DAG_CALL) else cb.NO_RESOURCES
    assert ingress.refused(port, b"\xff\xff\xff") == expected
    ingress.alive()


@pytest.mark.parametrize("port", ports.REQUEST_PORTS)
def test_a_request_of_several_parts_is_refused(ingress: Setting, port: int) -> None:
    assert ingress.refused(port, b"", b"") == cb.EXECUTION_ERROR
    assert ingress.refused(port, b"", WANTS_REASON, b"") == cb.EXECUTION_ERROR


def test_who_asks_for_the_reason_gets_it(ingress: Setting) -> None:
    ingress.lease()
    reply, reason = ingress.ask(ports.DAG_CALL, b"\xff", WANTS_REASON)
    assert cb.GenericResponse.FromString(reply).error == cb.EXECUTION_ERROR
    assert b"DagCall" in reason
    assert ingress.ask(ports.CONNECT, WANTS_REASON) == [HOST.encode(), b""]


def test_a_request_without_a_way_back_is_dropped(ingress: Setting) -> None:
    dealer = ingress.context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(ports.tcp(HOST, ports.DAG_CALL))
    dealer.send(b"no delimiter")
    ingress.counted("dropped_no_envelope")
    dealer.close()


def test_a_continuation_whose_result_is_no_value_ends_nobody(ingress: Setting) -> None:
    ingress.lease()
    ingress.push(ports.CONTINUATION, cb.Continuation(name="d", result=b"\xff\xff").SerializeToString())
    ingress.counted("forwarded")
    ingress.alive()


LONG = "n" * (CONFIG.scheduler.max_name_bytes + 1)
FEW_LETTERS = "nn" + "\u20ac" * 341
"""As many bytes as LONG, in a third of the letters."""


@pytest.mark.parametrize(
    ("port", "request_"),
    [
        (ports.FUNCTION_CALL, cb.FunctionCall(name=LONG)),
        (ports.FUNCTION_CALL, cb.FunctionCall(name="f", response_key=LONG)),
        (ports.FUNCTION_CALL, cb.FunctionCall(name="f", response_key=FEW_LETTERS)),
        (ports.DAG_CALL, cb.DagCall(name=LONG)),
        (ports.DAG_CALL, cb.DagCall(name="d", output_key=LONG)),
        (ports.DAG_CALL, cb.DagCall(name="d", continuation=cb.Continuation(name=LONG))),
        (ports.DAG_CALL, cb.DagCall(name="d", continuation=cb.Continuation(call=cb.DagCall(name=LONG)))),
    ],
)
def test_a_name_that_is_too_long_is_refused_and_not_remembered(
    ingress: Setting, port: int, request_: cb.FunctionCall | cb.DagCall
) -> None:
    ingress.lease()
    reply, reason = ingress.ask(port, request_.SerializeToString(), WANTS_REASON)
    assert cb.GenericResponse.FromString(reply).error == cb.EXECUTION_ERROR
    assert b"1025 bytes: the limit is 1024 (scheduler.max_name_bytes)" in reason
    assert ingress.loop.why(LONG).told == ()


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("address", ["tcp://client.example:6460", "tcp://127.0.0.1:70000", "ipc:///tmp/x"])
def test_an_address_that_no_result_could_be_sent_to_is_refused(
    ingress: Setting, address: str, continued: bool
) -> None:
    ingress.lease()
    call = cb.DagCall(name="d", response_address=address)
    if continued:
        call = cb.DagCall(name="d", continuation=cb.Continuation(name="d", call=call))
    reply, reason = ingress.ask(ports.DAG_CALL, call.SerializeToString(), WANTS_REASON)
    assert cb.GenericResponse.FromString(reply).error == cb.EXECUTION_ERROR
    assert reason.decode().startswith(f"results cannot be sent to {address!r}: give an address like tcp://")


def test_of_a_status_a_function_of_too_long_a_name_is_left_out(ingress: Setting) -> None:
    status = internal_pb2.ThreadStatus(ip=HOST, tid=0, running=True, functions=["f", LONG])
    ingress.push(ports.STATUS, status.SerializeToString())
    ingress.counted("statuses")
    (record,) = ingress.loop.snapshot(time.monotonic()).executors
    assert record.functions == ("f",)


@pytest.mark.parametrize("port", [ports.CALL_QUEUE, ports.CONTINUATION])
def test_what_is_handed_on_unheard_can_be_asked_for(ingress: Setting, port: int) -> None:
    if port == ports.CALL_QUEUE:
        message: cb.FunctionCall | cb.Continuation = cb.FunctionCall(name="f", response_key="id")
    else:
        message = cb.Continuation(name="f", id="id")
    ingress.push(port, message.SerializeToString())
    ingress.counted("forwarded")
    ((_, told),) = ingress.loop.why("id").told
    assert told == "the Scheduler was asked to decide a call of f: no valid lease here"


@pytest.mark.parametrize("port", [ports.CALL_QUEUE, ports.CONTINUATION])
def test_what_nobody_hears_a_refusal_of_is_looked_after(
    port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a lease it is handed on; there is no Scheduler to take it, nor to write the error value yet."""
    setting = Setting(CONFIG.replace(**{"executor.runtime_dir": str(tmp_path)}))
    try:
        queued = cb.FunctionCall(name="f", response_key="k")
        continuation = cb.Continuation(name="d", id="i", call=cb.DagCall(output_key="k"))
        message = queued if port == ports.CALL_QUEUE else continuation
        setting.push(port, message.SerializeToString())
        setting.counted("forwarded")
        setting.counted("dropped_call")
        setting.until(lambda: "calls=1 that may be lost" in caplog.text)
    finally:
        setting.close()


def test_a_whole_table_has_all_the_dags_there_are(ingress: Setting) -> None:
    ingress.lease()
    record = ExecutorRecord(HOST, 0, False, ("f",), (), True, 0.0, time.monotonic(), 0.0, 1)
    update = Update(2, 0, True, (record,), {}, {}, {}, time.monotonic() + 1000.0)
    ingress.loop.mailbox.put(lambda now: ingress.loop.apply(update, now))
    ingress.until(lambda: ingress.loop.status(time.monotonic())["dags"] == 0)
    call = cb.FunctionCall(name="f", response_key="k").SerializeToString()
    assert cb.GenericResponse.FromString(ingress.ask(ports.FUNCTION_CALL, call)[0]).success


@pytest.mark.parametrize("port", ports.PUSH_PORTS)
def test_a_pushed_message_that_does_not_parse_is_counted(ingress: Setting, port: int) -> None:
    ingress.push(port, b"\xff\xff\xff")
    ingress.push(port, b"", b"")
    ingress.counted(f"dropped_port_{port}", 2)


@pytest.mark.parametrize(
    ("ip", "tid"),
    [
        ("not an address", 0),
        ("", 0),
        ("localhost", 0),
        ("10.0.0.1:4000", 0),
        ("10.0.0.1", 10),
        ("10.0.0.1", 70_000),
    ],
)
def test_a_status_of_what_cannot_be_an_executor_is_dropped(ingress: Setting, ip: str, tid: int) -> None:
    ingress.push(ports.STATUS, internal_pb2.ThreadStatus(ip=ip, tid=tid, running=True).SerializeToString())
    ingress.counted(f"dropped_port_{ports.STATUS}")
    assert executors(ingress) == 0


def test_the_policy_hears_the_end_of_a_process_that_did_not_tell_it(ingress: Setting) -> None:
    told: list[Event] = []
    ingress.loop._events.add = lambda event, **how: told.append(event)  # type: ignore[method-assign]
    for process in (7, 7, 8):
        status = internal_pb2.ThreadStatus(ip=HOST, running=True, functions=["f"], process=process)
        ingress.push(ports.STATUS, status.SerializeToString())
    ingress.counted("statuses", 4)
    first, end, second = (event.status for event in told if isinstance(event, StatusSeen))
    assert (first.running, end.running, second.running) == (True, False, True)
    assert (first.process, end.process, second.process) == (7, 8, 8)
    assert executors(ingress) == 1


@pytest.mark.parametrize("utilization", [float("nan"), float("-inf"), float("inf"), 1e300])
def test_an_absurd_utilization_is_taken_for_none_or_full(ingress: Setting, utilization: float) -> None:
    for number, told in enumerate((utilization, 0.5, utilization), 1):
        status = internal_pb2.ThreadStatus(ip="10.0.0.1", running=True, utilization=told)
        ingress.push(ports.STATUS, status.SerializeToString())
        ingress.counted("statuses", number)
        (record,) = ingress.loop._table.records()
        assert record.utilization in ((0.5,) if told == 0.5 else (0.0, 1.0))


def test_what_a_status_says_again_costs_no_more_than_a_look_and_a_cut_connection_is_heard_of_all_the_same(
    ingress: Setting,
) -> None:
    looked_through: list[int] = []
    cut: list[tuple[object, int]] = []
    seen: list[object] = []
    loop = ingress.loop
    status_of, say_seen = loop._status_of, loop._events.seen
    loop._status_of = lambda message, size: (looked_through.append(size), status_of(message, size))[1]  # type: ignore
    loop._events.seen = lambda address, now: (seen.append(address), say_seen(address, now))[1]  # type: ignore
    loop._lost.reconnected = lambda address, times, now: cut.append((address, times))
    status = internal_pb2.ThreadStatus(ip="10.0.0.1", tid=2, running=True, functions=["g", "f"], process=3)
    for number, (utilization, reconnections) in enumerate([(0.1, 0), (0.1, 0), (0.4, 0), (0.4, 5)], 1):
        status.utilization, status.reconnections = utilization, reconnections
        ingress.push(ports.STATUS, status.SerializeToString())
        ingress.counted("statuses", number)
        (record,) = loop._table.records()
        assert record.utilization == utilization
    assert len(looked_through) == 1
    assert seen == 3 * [("10.0.0.1", 2)]
    assert cut == [(("10.0.0.1", 2), 5)]


@pytest.mark.parametrize("told", ["by its status", "by the policy", "by a whole table"])
def test_what_waits_for_an_executor_that_left_is_not_its_successors(ingress: Setting, told: str) -> None:
    ingress.lease()
    ingress.send("pin", pin("before"))  # nobody listens at its address
    status = internal_pb2.ThreadStatus(ip=HOST, tid=0, running=False).SerializeToString()
    removed = {} if told == "by a whole table" else {(HOST, 0): 1}
    update = Update(1, 1, not removed, (), removed, {}, {}, time.monotonic() + 1000.0)

    def in_one_turn(now: float) -> None:
        ingress.loop.send(((HOST, 0, "pin", pin("just before")),), now)
        if told == "by its status":
            ingress.loop._on_status(status, now)
        else:
            ingress.loop.apply(update, now)

    ingress.loop.mailbox.put(in_one_turn)
    ingress.until(lambda: executors(ingress) == 0)
    ingress.send("pin", pin("too late"))  # whoever sent it had not heard
    if told == "by its status":
        time.sleep(2 * FAREWELL_MS / 1000)  # only then it is given up

    with ingress.executor("pin") as successor:
        ingress.push(ports.STATUS, internal_pb2.ThreadStatus(ip=HOST, running=True).SerializeToString())
        ingress.until(lambda: executors(ingress) == 1)
        ingress.send("pin", pin("in time"))
        assert successor.recv() == pin("in time")


def test_the_status_that_ends_an_unpin_is_news_though_it_changes_nothing_here(ingress: Setting) -> None:
    ingress.lease()
    (executor,) = ingress.loop._table.executors.values()

    def reported(*functions: str) -> bool:
        """Whether the Policy hears of it as of something new."""
        told: list[bool] = []
        status = Status(HOST, 0, functions)
        ingress.loop.mailbox.put(
            lambda now: told.append(ingress.loop._table.on_status(status, now, seq_at(now)))
        )
        ingress.until(lambda: bool(told))
        return told[0]

    reported("f")
    assert not reported("f")
    ingress.send("unpin", b"f")
    ingress.loop.mailbox.put(lambda now: ingress.loop._table.unpinned((HOST, 0), "f"))
    assert reported()
    assert not reported()
    ingress.send("unpin", b"f")
    ingress.send("pin", pin("f"))  # from now on it may report it, and that is no news
    ingress.until(lambda: executor.unpinning == set())
    assert not reported()


@pytest.mark.parametrize("way", ["by handle", "forwarded"])
def test_the_status_that_ends_a_call_of_the_schedulers_is_news_though_nobody_said_that_it_began(
    way: str,
) -> None:
    setting = Setting(CONFIG.replace(mgmt="127.0.8.22"))  # where a call takes an executor
    told: list[Event] = []
    try:
        loop = setting.loop
        loop._events.add = lambda event, **how: told.append(event)  # type: ignore[method-assign]
        status = internal_pb2.ThreadStatus(ip=HOST, running=True).SerializeToString()
        setting.push(ports.STATUS, status)
        setting.counted("statuses")
        (executor,) = loop._table.executors.values()
        assert executor.free
        take = loop.send if way == "by handle" else loop._note
        call = (HOST, 0, "call", cb.FunctionCall(name="f").SerializeToString())
        loop.mailbox.put(lambda now: take((call,), now))
        setting.until(lambda: not executor.free)
        told.clear()
        setting.push(ports.STATUS, status)
        setting.counted("statuses", 2)
        assert executor.free
        assert [event.status for event in told if isinstance(event, StatusSeen)] == [Status(HOST, 0)]
    finally:
        setting.close()


def test_what_was_sent_to_an_executor_just_before_it_said_goodbye_still_reaches_it(ingress: Setting) -> None:
    ingress.lease()
    status = internal_pb2.ThreadStatus(ip=HOST, tid=0, running=False).SerializeToString()

    def in_one_turn(now: float) -> None:
        for number in range(100):
            ingress.loop.send(((HOST, 0, "schedule", b"%d" % number),), now)
        ingress.loop._on_status(status, now)

    with ingress.executor("schedule") as leaving:
        ingress.send("schedule", b"hello")
        assert leaving.recv() == b"hello"
        ingress.loop.mailbox.put(in_one_turn)
        assert [leaving.recv() for _ in range(100)] == [b"%d" % number for number in range(100)]


def test_mutated_messages_on_every_port_end_nobody(ingress: Setting) -> None:
    """Every request is answered, and the loop lives; the seed makes a failure happen again."""
    ingress.lease()
    rng = random.Random(20_000)
    recorded = [bytes.fromhex(vector["hex"]) for vector in VECTORS]
    recorded.append(
        cb.Continuation(name="d", id="i", result=to_value(1).SerializeToString()).SerializeToString()
    )
    for _ in range(3000):
        body = bytearray(rng.choice(recorded))
        for _ in range(rng.randrange(4)):
            if body:
                body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.3:
            del body[rng.randrange(len(body) + 1) :]
        port = rng.choice(ports.REQUEST_PORTS + ports.PUSH_PORTS)
        if port in (ports.FUNCTION_CALL, ports.DAG_CALL, ports.CONNECT):
            assert len(ingress.ask(port, bytes(body))) == (2 if bytes(body) == WANTS_REASON else 1)
        elif port in ports.PUSH_PORTS:
            ingress.push(port, bytes(body))
    ingress.alive()
    assert ingress.loop.counts["failed"] == 0


@pytest.mark.parametrize("port", ports.REQUEST_PORTS)
def test_a_request_that_is_too_large_is_refused_with_the_limit(port: int) -> None:
    with_limits = Setting(LIMITED)
    try:
        with_limits.lease()
        reply, reason = with_limits.ask(port, b"\0" * 2001, WANTS_REASON)
        assert cb.GenericResponse.FromString(reply).error == cb.EXECUTION_ERROR
        assert b"2001 bytes: the limit is 2000 (scheduler.max_" in reason
        with_limits.alive()
    finally:
        with_limits.close()


def test_a_pushed_message_that_is_too_large_is_dropped_and_the_next_one_taken() -> None:
    with_limits = Setting(LIMITED)
    try:
        large = internal_pb2.ThreadStatus(ip="10.0.0.1", running=True, functions=["x" * 2000])
        small = internal_pb2.ThreadStatus(ip="10.0.0.1", running=True)
        with_limits.push(ports.STATUS, large.SerializeToString())
        with_limits.push(ports.STATUS, small.SerializeToString())
        with_limits.counted("statuses")
        assert with_limits.loop.counts[f"dropped_port_{ports.STATUS}"] == 1
    finally:
        with_limits.close()


def test_no_more_executors_are_known_than_are_allowed() -> None:
    limited = Setting(LIMITED)
    try:
        for number in range(5):
            status = internal_pb2.ThreadStatus(ip=f"10.0.0.{number}", running=True)
            limited.push(ports.STATUS, status.SerializeToString())
        limited.counted(f"dropped_port_{ports.STATUS}", 2)
        assert executors(limited) == 3
        limited.push(
            ports.STATUS, internal_pb2.ThreadStatus(ip="10.0.0.0", running=False).SerializeToString()
        )
        limited.push(ports.STATUS, internal_pb2.ThreadStatus(ip="10.0.0.9", running=True).SerializeToString())
        limited.counted("statuses", 5)
        assert executors(limited) == 3
    finally:
        limited.close()


def test_an_executor_that_takes_nothing_more_is_left_out_until_it_does_and_no_send_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front, "HOLD_S", 60.0)  # the machine may be busy
    unlimited = Setting(CONFIG.replace(**{"policy.max_recent_calls": 0, "scheduler.max_wait_s": 60.0}))
    try:
        unlimited.lease()

        def call_for(key: str) -> bytes:
            return cb.DagCall(name="d", output_key=key).SerializeToString()

        calls = HIGH_WATER_MARK + 500
        with unlimited.context.socket(zmq.DEALER) as crowd:
            crowd.linger = 0
            crowd.sndhwm = crowd.rcvhwm = 0
            crowd.rcvtimeo = WAIT_MS
            crowd.connect(ports.tcp(HOST, ports.DAG_CALL))
            for number in range(calls):  # nobody listens where the executor should be
                crowd.send_multipart([b"", call_for(str(number))])
            replies = [cb.GenericResponse.FromString(crowd.recv_multipart()[-1]) for _ in range(calls)]
            assert replies[0].success and not replies[-1].success
            assert replies[-1].error == cb.NO_RESOURCES
            assert unlimited.loop._table.executors[HOST, 0].suspected
            assert unlimited.loop.status(time.monotonic())["held_messages"]
            # Whoever listens now gets all that was accepted, and is used again.
            accepted = [reply.response_id for reply in replies if reply.success]
            with unlimited.executor("schedule") as schedules, unlimited.executor("trigger") as triggers:
                took = [cb.DagSchedule.FromString(schedules.recv()) for _ in accepted]
                assert [schedule.output_key for schedule in took] == accepted
                ids = [cb.DagTrigger.FromString(triggers.recv()).id for _ in accepted]
                assert ids == [schedule.id for schedule in took]
                unlimited.until(lambda: not unlimited.loop._table.executors[HOST, 0].suspected)
                crowd.send_multipart([b"", call_for("last")])
                assert cb.GenericResponse.FromString(crowd.recv_multipart()[-1]).response_id == "last"
                assert cb.DagSchedule.FromString(schedules.recv()).output_key == "last"
            assert not unlimited.loop.counts["dropped_send"]
    finally:
        unlimited.close()


def test_what_comes_while_replies_go_out_is_looked_at_next() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, first, second = (context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER, zmq.DEALER))
    router.bind("inproc://requests")
    for client in (first, second):
        client.connect("inproc://requests")

    def meanwhile() -> None:
        if not asked:
            asked.append(second.send_multipart([b"", b"2"]))
            assert router.poll(WAIT_MS)  # whose descriptor says nothing of it from here on

    asked: list[object] = []
    limit = Limit(1000, "max_message_bytes")
    echo = request_handler(
        lambda body, peer, now: Reply(body), limit, Counter(), lambda *_: None, None, meanwhile
    )
    first.send_multipart([b"", b"1"])
    assert router.poll(WAIT_MS)
    assert echo(router, 0.0)
    assert first.recv_multipart() == [b"", b"1"]
    assert echo(router, 0.0)
    assert second.recv_multipart() == [b"", b"2"]
    assert not echo(router, 0.0)
    context.destroy(0)


@pytest.mark.parametrize("asked", [1, ANSWERED_FIRST, ANSWERED_FIRST + 1, 3 * ANSWERED_TOGETHER])
def test_the_first_of_a_turn_do_not_wait_for_its_last_and_nobody_is_answered_before_it_is_noted(
    asked: int,
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.bind("inproc://requests")
    client.connect("inproc://requests")
    answered: list[bytes] = []
    noted: list[bytes] = []
    taken: list[bytes] = []
    groups: list[int] = []

    def note() -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                answered.append(client.recv_multipart(zmq.NOBLOCK)[1])
        assert answered == noted  # all who were noted before, and nobody else
        groups.append(len(taken) - len(noted))
        noted.extend(taken[len(noted) :])

    def answer(body: bytes, peer: Peer, now: float) -> Reply:
        taken.append(body)
        return Reply(body)

    serve = request_handler(answer, Limit(1000, "max_message_bytes"), Counter(), lambda *_: None, None, note)
    bodies = [b"%d" % number for number in range(asked)]
    for body in bodies:
        client.send_multipart([b"", body])
    assert router.poll(WAIT_MS)
    assert serve(router, 0.0)
    answered += [client.recv_multipart()[1] for _ in range(asked - len(answered))]
    assert answered == noted == bodies
    assert groups[0] == min(asked, ANSWERED_FIRST)
    assert set(groups[1:-1]) <= {ANSWERED_TOGETHER}
    context.destroy(0)
