"""The front and its shards by themselves, on real sockets: one answer a call, no executor booked twice.

There is no Ray here: the tables come from the tests, and what would be told to other actors goes nowhere.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from ray_sched import keys
from ray_sched.actors import shard_wires
from ray_sched.actors.ingress_loop import IngressLoop
from ray_sched.actors.ledger import Ledger
from ray_sched.actors.link import Link
from ray_sched.actors.lost_calls import LostCalls
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.shard_wires import Passing
from ray_sched.actors.sharded_ingress import FrontLoop, ShardLoop
from ray_sched.config import Config
from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address, ExecutorRecord
from ray_sched.core.partition import FRONT, Part, owner
from ray_sched.core.replication import Update
from ray_sched.errors import ConfigError, PortTakenError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.codec import WANTS_REASON
from ray_sched.wire.curve import Keys
from ray_sched.wire.ports import tcp

HOST = "127.34.1.1"
EXECUTORS = "127.34.1.2"
WAIT_S = 20.0
SHARDS = 3


class Group:
    """A front and its shards."""

    def __init__(
        self,
        folder: Path,
        *,
        mgmt: str = HOST,
        shards: int = SHARDS,
        curve: str = "",
        max_wait_s: float = 0.5,
    ) -> None:
        self.config = Config(host=HOST, mgmt=mgmt, layout="wide").replace(
            **{
                "ingress.shards": shards,
                "executor.runtime_dir": str(folder),
                "policy.random_threshold": 0.0,
                "scheduler.max_wait_s": max_wait_s,
                "security.curve": curve,
            }
        )
        self.failures: list[str] = []
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.front = FrontLoop(self.config, lambda: self.failures.append("front"))
        self.shards = [self.shard(number) for number in range(1, shards + 1)]
        for loop in [self.front, *self.shards]:
            loop.start()
        self.until(self.connected)

    def connected(self) -> bool:
        """Whether calls can be passed on to each shard."""
        found: list[bool] = []
        for loop in [self.front, *self.shards]:
            passing, asked = loop._passing, threading.Event()

            def look(now: float, passing: Passing = passing, asked: threading.Event = asked) -> None:
                found.append(all(socket.poll(0, zmq.POLLOUT) for socket in passing._sockets))
                asked.set()

            loop.mailbox.put(look)
            assert asked.wait(WAIT_S)
        return all(found)

    def shard(self, number: int) -> ShardLoop:
        return ShardLoop(self.config, number, lambda: self.failures.append(f"shard {number}"))

    def lease(self, tids: int = 0, loops: list[IngressLoop] | None = None) -> None:
        """So many free executors, one that holds f, and a DAG of it."""
        now = time.monotonic()

        def record(tid: int, *functions: str) -> ExecutorRecord:
            return ExecutorRecord(EXECUTORS, tid, False, functions, (), not functions, 0.0, now, 0.0, 1)

        records = [record(tid) for tid in range(tids)]
        holder = record(140, "f")
        dag = cb.Dag(name="d", functions=[cb.Dag.FunctionReference(name="f")]).SerializeToString()
        update = Update(1, 0, True, (*records, holder), {}, {}, {"d": dag}, now + 1000)
        for loop in loops or [self.front, *self.shards]:
            loop.mailbox.put(lambda now, loop=loop: loop.apply(update, now))  # type: ignore[misc]
            assert loop.synced.wait(WAIT_S)

    def client(self, port: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.REQ)
        socket.linger, socket.rcvtimeo = 0, int(WAIT_S * 1000)
        socket.connect(tcp(HOST, port))
        return socket

    def call(self, socket: zmq.Socket[bytes], key: str = "") -> cb.GenericResponse:
        socket.send(cb.FunctionCall(name="f", response_key=key).SerializeToString())
        return cb.GenericResponse.FromString(socket.recv())

    def report(self, *addresses: Address) -> None:
        """Statuses of free executors, taken in by all."""
        before = {loop: loop.counts["statuses"] for loop in [self.front, *self.shards]}
        with self.context.socket(zmq.PUSH) as socket:
            socket.connect(tcp(HOST, ports.STATUS))
            for ip, tid in addresses:
                socket.send(internal_pb2.ThreadStatus(ip=ip, tid=tid, running=True).SerializeToString())
        for loop, number in before.items():
            self.until(lambda loop=loop, number=number: loop.counts["statuses"] >= number + len(addresses))

    def until(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not so():
            assert time.monotonic() < deadline, [dict(loop.counts) for loop in [self.front, *self.shards]]
            time.sleep(0.005)
        assert not self.failures

    def counted(self, what: str) -> int:
        return sum(loop.counts[what] for loop in [self.front, *self.shards])

    def close(self) -> None:
        self.front.stop()
        for shard in self.shards:
            shard.stop()
        self.context.destroy(0)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    yield group
    group.close()
    assert not group.failures


@pytest.fixture
def calls(group: Group) -> Iterator[Callable[[], list[int]]]:
    """Which executors got one-shot calls so far, each as often as it did."""
    sockets = [group.context.socket(zmq.PULL) for _ in range(50)]
    for tid, socket in enumerate(sockets):
        socket.linger = 0
        socket.bind(tcp(EXECUTORS, ports.WIDE.call + tid))
    got: list[int] = []

    def arrived() -> list[int]:
        for tid, socket in enumerate(sockets):
            while socket.poll(0):
                socket.recv()
                got.append(tid)
        return got

    yield arrived
    for socket in sockets:
        socket.close()


def test_each_client_gets_its_own_answer_once(group: Group) -> None:
    group.lease()
    answers: dict[str, list[str]] = {}

    def ask(name: str) -> None:
        with group.client(ports.DAG_CALL) as socket:
            for number in range(20):
                call = cb.DagCall(name="d", output_key=f"{name}-{number}")
                socket.send(call.SerializeToString())
                reply = cb.GenericResponse.FromString(socket.recv())
                answers.setdefault(name, []).append(reply.response_id)
            assert not socket.poll(0)

    clients = [threading.Thread(target=ask, args=(f"client{number}",)) for number in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(WAIT_S)
    assert answers == {f"client{n}": [f"client{n}-{k}" for k in range(20)] for n in range(12)}
    assert group.counted("dag_calls") == 240
    assert all(shard.counts["dag_calls"] for shard in group.shards)
    assert not group.front.counts["dag_calls"]


def test_no_executor_is_booked_twice_and_none_is_missed(group: Group, calls: Callable[[], list[int]]) -> None:
    group.lease(tids=40)
    replies: list[cb.GenericResponse] = []

    def ask() -> None:
        with group.client(ports.FUNCTION_CALL) as socket:
            replies.extend(group.call(socket) for _ in range(5))

    clients = [threading.Thread(target=ask) for _ in range(16)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(WAIT_S)
    accepted = [reply.response_id for reply in replies if reply.success]
    assert len(replies) == 80
    assert len(set(accepted)) == len(accepted) == 40
    assert {reply.error for reply in replies if not reply.success} == {cb.NO_RESOURCES}
    group.until(lambda: len(calls()) >= 40)
    assert sorted(calls()) == list(range(40))


def test_a_status_frees_an_executor_for_its_shard(group: Group, calls: Callable[[], list[int]]) -> None:
    group.lease(tids=1)
    with group.client(ports.FUNCTION_CALL) as socket:
        for number in range(1, 7):  # whichever shard is asked, the one whose executor it is takes the call
            assert group.call(socket).success
            group.until(lambda number=number: len(calls()) == number)
            assert group.call(socket).error == cb.NO_RESOURCES
            group.report((EXECUTORS, 0))
    mine = group.shards[owner((EXECUTORS, 0), SHARDS) - 1]
    assert mine.counts["calls"] >= 6
    assert group.counted("passed_on") > 0


def test_a_status_from_before_a_booking_does_not_free_the_executor(group: Group) -> None:
    group.lease(tids=1)
    shard = group.shards[owner((EXECUTORS, 0), SHARDS) - 1]
    before = time.monotonic_ns()
    status = internal_pb2.ThreadStatus(ip=EXECUTORS, tid=0, running=True).SerializeToString()
    with group.client(ports.FUNCTION_CALL) as socket:
        assert group.call(socket).success
        taken = threading.Event()

        def late(now: float) -> None:
            shard._on_told_status(before.to_bytes(8, "little") + status, now)
            taken.set()

        shard.mailbox.put(late)
        assert taken.wait(WAIT_S)
        assert group.call(socket).error == cb.NO_RESOURCES


def test_queued_calls_find_whoever_is_free(group: Group, calls: Callable[[], list[int]]) -> None:
    group.lease(tids=6)
    with group.context.socket(zmq.PUSH) as socket:
        socket.connect(tcp(HOST, ports.CALL_QUEUE))
        for _ in range(7):
            socket.send(cb.FunctionCall(name="f", source_hint=cb.STORAGE).SerializeToString())
        group.until(lambda: len(calls()) == 6 and group.counted(f"dropped_port_{ports.CALL_QUEUE}") == 1)
    assert sorted(calls()) == list(range(6))


def test_a_queued_call_goes_where_its_data_lies(group: Group, calls: Callable[[], list[int]]) -> None:
    group.lease(tids=3)
    near = "127.34.1.3"
    with group.context.socket(zmq.PULL) as executor, group.context.socket(zmq.PUSH) as tier:
        executor.bind(tcp(near, ports.WIDE.call))
        tier.connect(tcp(HOST, ports.CALL_QUEUE))
        for number in range(SHARDS):
            group.report((near, 0))
            call = cb.FunctionCall(
                name="f", source_hint=cb.STORAGE, locations=[near], response_key=str(number)
            )
            tier.send(call.SerializeToString())
            assert executor.poll(WAIT_S * 1000)
            assert cb.FunctionCall.FromString(executor.recv()).response_key == str(number)
    assert not calls()


def test_who_asks_for_the_reason_gets_it_through_every_shard(group: Group) -> None:
    group.lease(tids=1)
    with group.client(ports.FUNCTION_CALL) as socket:
        assert group.call(socket).success
        for _ in range(SHARDS):
            call = cb.FunctionCall(name="f").SerializeToString()
            socket.send_multipart([call, WANTS_REASON])
            reply, reason = socket.recv_multipart()
            assert cb.GenericResponse.FromString(reply).error == cb.NO_RESOURCES
            assert b"no free executor" in reason


def test_calls_go_on_while_a_shard_is_gone_and_it_comes_back(group: Group) -> None:
    group.lease(tids=40)
    group.shards[0].stop()
    with group.client(ports.DAG_CALL) as socket, group.client(ports.FUNCTION_CALL) as one_shot:
        for number in range(20):
            socket.send(cb.DagCall(name="d", output_key=str(number)).SerializeToString())
            assert cb.GenericResponse.FromString(socket.recv()).response_id == str(number)
        theirs = sum(owner((EXECUTORS, tid), SHARDS) != 1 for tid in range(40))
        assert [group.call(one_shot).success for _ in range(theirs)] == [True] * theirs
        assert not group.call(one_shot).success
        group.shards[0] = group.shard(1)
        group.shards[0].start()
        group.lease(tids=40, loops=[group.shards[0]])
        rest = 0

        def asked() -> bool:
            nonlocal rest
            rest += group.call(one_shot).success
            return rest == 40 - theirs

        group.until(asked)


def test_a_front_that_comes_back_finds_its_shards(group: Group) -> None:
    group.lease()
    with group.client(ports.DAG_CALL) as socket:
        socket.send(cb.DagCall(name="d").SerializeToString())
        assert cb.GenericResponse.FromString(socket.recv()).success
    group.front.stop()
    group.front = FrontLoop(group.config, lambda: group.failures.append("front"))
    group.front.start()
    group.lease(loops=[group.front])
    with group.client(ports.DAG_CALL) as socket:
        for number in range(2 * SHARDS):
            socket.send(cb.DagCall(name="d", output_key=str(number)).SerializeToString())
            assert cb.GenericResponse.FromString(socket.recv()).response_id == str(number)
    status = internal_pb2.ThreadStatus(ip=EXECUTORS, tid=0, running=True).SerializeToString()
    with group.context.socket(zmq.PUSH) as tells:
        tells.connect(tcp(HOST, ports.STATUS))

        def heard() -> bool:
            tells.send(status)  # the first ones may come before the shards are connected again
            return all(shard.counts["statuses"] for shard in group.shards)

        group.until(heard)


def test_without_a_lease_a_shard_hands_one_shot_calls_on(group: Group) -> None:
    with group.client(ports.FUNCTION_CALL) as socket:
        assert group.call(socket).error == cb.NO_RESOURCES
        assert group.counted("forwarded") == 0  # the Scheduler could book what a shard books
        group.lease(tids=40, loops=[group.shards[2]])
        assert all(group.call(socket).success for _ in range(6))
        assert group.shards[2].counts["calls"] == 6


def test_a_shard_answers_what_is_passed_on_to_it_once_the_front_can_be_reached(tmp_path: Path) -> None:
    group = Group(tmp_path, shards=2, max_wait_s=WAIT_S)
    here = shard_wires.ipc(group.config, f"calls-{ports.FUNCTION_CALL}").removeprefix("ipc://")
    group.shards[1].stop()
    os.rename(here, f"{here}.away")
    group.shards[1] = group.shard(2)
    group.shards[1].start()
    group.until(group.connected)
    group.lease(tids=40, loops=[group.shards[1]])
    with group.client(ports.FUNCTION_CALL) as socket:
        socket.send(cb.FunctionCall(name="f").SerializeToString())
        group.until(lambda: group.counted("passed_on") == 1 == group.shards[1].counts["calls"])
        os.rename(f"{here}.away", here)
        assert cb.GenericResponse.FromString(socket.recv()).success
    assert group.counted("dropped_reply") == 0
    group.close()


def test_in_local_mode_no_executor_is_taken(tmp_path: Path) -> None:
    group = Group(tmp_path, mgmt="", shards=2)
    group.lease(tids=1)
    with group.client(ports.FUNCTION_CALL) as socket:
        assert all(group.call(socket).success for _ in range(6))
    assert group.counted("passed_on") == 0
    assert all(shard.counts["calls"] == 3 for shard in group.shards)
    group.close()


def test_only_holders_of_keys_are_heard(tmp_path: Path) -> None:
    own = Keys.of_client(keys.new("alice", tmp_path / "keys"))
    group = Group(tmp_path, mgmt="", shards=2, curve=str(tmp_path / "keys"))
    group.lease(tids=1)
    call = cb.DagCall(name="d", output_key="k").SerializeToString()
    with group.context.socket(zmq.DEALER) as stranger, group.context.socket(zmq.REQ) as alice:
        stranger.connect(tcp(HOST, ports.DAG_CALL))
        stranger.send_multipart([b"", call])
        own.connect(alice, ports.DAG_CALL)
        alice.connect(tcp(HOST, ports.DAG_CALL))
        for _ in range(4):
            alice.send(call)
            assert alice.poll(WAIT_S * 1000)
            assert cb.GenericResponse.FromString(alice.recv()).success
        assert group.counted("dag_calls") == 4
        assert not stranger.poll(0)
        alice.linger = stranger.linger = 0
    group.close()


def test_a_new_front_looks_after_what_shards_noted_and_nobody_else_does(tmp_path: Path) -> None:
    config = Config(host=HOST).replace(**{"ingress.shards": 2, "executor.runtime_dir": str(tmp_path)})
    now = time.monotonic()
    for shard in (1, 3):  # the third is of a group that was killed, and had more of them
        noted = Ledger(tmp_path / f"{HOST}-calls-{shard}", config.scheduler.noted_calls_bytes)
        for key, continued in (("continued", True), ("plain", False)):
            to = Destination.of_call(cb.FunctionCall(name="f", response_key=f"{key}-{shard}"))
            noted.add((now - 1.0, ((EXECUTORS, 0),), tuple(to), continued))
    lost = LostCalls(config, Link(HOST, "scheduler"), Mailbox(), Part(FRONT, 2))
    due = lost._doubts.take_due(now + 10.0)
    assert due is not None
    assert {call.to.key for call in due.doubtful()} == {"continued-1", "continued-3", "plain-3"}
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{HOST}-calls", f"{HOST}-calls-1"]
    lost.close()


def test_a_taken_port_is_named(group: Group) -> None:
    with pytest.raises(PortTakenError, match="port 5000"):
        FrontLoop(group.config, lambda: None)


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    config = Config(host=HOST).replace(**{"ingress.shards": 2, "executor.runtime_dir": str(long)})
    with pytest.raises(ConfigError, match="runtime_dir"):
        ShardLoop(config, 1, lambda: None)


def test_the_limit_of_recent_calls_is_shared(tmp_path: Path) -> None:
    config = Config(host=HOST).replace(
        **{"ingress.shards": 2, "executor.runtime_dir": str(tmp_path), "policy.max_recent_calls": 1000}
    )
    shard = ShardLoop(config, 1, lambda: None)
    assert shard._config.policy.max_recent_calls == 500
    shard.start()
    shard.stop()
