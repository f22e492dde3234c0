"""What is fuzzed: each a part of the system with its real sockets, and how to see that it still serves."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ray_sched import responses
from ray_sched.actors.ingress_loop import IngressLoop
from ray_sched.config import Config
from ray_sched.core.executor import ExecutorRecord
from ray_sched.core.replication import Update
from ray_sched.errors import BadMessageError
from ray_sched.kvs import client
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.responses import ResponsePool
from ray_sched.values import dumps, loads
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.codec import WANTS_REASON
from tests.executor.bench import Bench
from tests.fuzz.inputs import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES

WAIT_MS: Final = 20_000
LIMITS: Final = {
    "scheduler.max_message_bytes": MAX_MESSAGE_BYTES,
    "scheduler.max_control_bytes": MAX_CONTROL_BYTES,
}


class Target:
    """One part, and the ports that anybody can send to."""

    name: str
    ports: Sequence[int] = ()
    examples = 50
    """Stories between two looks at the clock."""
    share = 1.0
    """Of the time that each target has."""

    @property
    def kept_for(self) -> Collection[str]:
        """Whose inputs that failed once are sent here, too: the ports of those targets come first here."""
        return {self.name}

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._faults = _Faults()

    def send(self, port: int, frames: list[bytes]) -> None:
        """Returns once it was answered, or taken in where that can be seen."""
        if self.is_cut_off(port, frames):
            self.send_in_vain(zmq.PUSH, ports.tcp(self.ip, port), frames)
        else:
            self.push(ports.tcp(self.ip, port), frames)

    def hard_bytes(self, port: int) -> int:
        """What a part of a message may have there: the connection of whoever sends more is closed."""
        raise NotImplementedError

    def is_cut_off(self, port: int, frames: list[bytes]) -> bool:
        return max(map(len, frames)) > self.hard_bytes(port)

    def send_in_vain(self, kind: int, address: str, frames: list[bytes]) -> None:
        """Over a connection of its own; returns once that was closed."""
        with self._context.socket(kind) as socket:
            socket.linger = 0
            with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
                monitor.rcvtimeo = WAIT_MS
                socket.connect(address)
                socket.send_multipart(frames)
                assert recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
                assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
                socket.disable_monitor()

    def check(self) -> None:
        """Raise AssertionError where it does not serve any more, or something went wrong inside."""
        self.serves()
        assert not self._faults.seen, "\n".join(self._faults.seen)

    def serves(self) -> None:
        raise NotImplementedError

    def begin_anew(self) -> None:
        """After a failure, so that the next one has its cause in its own story."""

    def close(self) -> None:
        self._context.destroy(0)
        self._faults.close()

    def disconnect(self) -> None:
        """Before something else listens where it listened: what was sent meanwhile could get lost."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    def push(self, address: str, frames: list[bytes]) -> None:
        self.socket(zmq.PUSH, address).send_multipart(frames)

    def socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        found = self._sockets.get(address)
        if found is None:
            found = self._sockets[address] = self._context.socket(kind)
            found.linger = 0
            found.rcvtimeo = found.sndtimeo = WAIT_MS
            found.connect(address)
        return found


class _Faults(logging.Handler):
    """Whatever is logged as an error is a fault of ours: what peers do wrong is a warning at most."""

    LOGGERS: Final = ("ray_sched", "concurrent.futures")
    """The second one tells of callbacks that fail."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []
        for name in self.LOGGERS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter("%(message)s").format(record)[-3000:])

    def close(self) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeHandler(self)
        super().close()


class SchedulerPorts(Target):
    """Where an Ingress loop listens."""

    ports: Sequence[int] = ports.REQUEST_PORTS + ports.PUSH_PORTS
    _loop: IngressLoop

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._tags = itertools.count(1)

    def hard_bytes(self, port: int) -> int:
        return self._loop._limit(port).hard_bytes

    def send(self, port: int, frames: list[bytes]) -> None:
        if port in ports.PUSH_PORTS:
            before = self._loop.counts[f"dropped_port_{port}"]
            super().send(port, frames)
            self.push(ports.tcp(self.ip, port), [b"", b""])  # taken after it, and counted
            wait_for(lambda: self._loop.counts[f"dropped_port_{port}"] > before, f"port {port} was not read")
        elif self.is_cut_off(port, frames):
            self.send_in_vain(zmq.DEALER, ports.tcp(self.ip, port), frames)
        else:
            self._request(port, frames)

    def _request(self, port: int, frames: list[bytes]) -> None:
        # What a REQ socket sends is such a frame of its own, an empty one, and one with the request.
        tag = b"%d" % next(self._tags)
        socket = self.socket(zmq.DEALER, ports.tcp(self.ip, port))
        socket.send_multipart([tag, *frames])
        answered = b"" in frames
        socket.send_multipart([b"end of " + tag, b"", b"", b""])
        wanted = {tag, b"end of " + tag} if answered else {b"end of " + tag}
        while wanted:
            reply = socket.recv_multipart()
            assert reply[0] in wanted, f"a second reply, or one to nobody: {reply}"
            wanted.discard(reply[0])
            if reply[0] == tag:
                end = frames.index(b"") + 1
                assert reply[: end + 1] == [tag, *frames[:end]]
                self._check_size(port, frames[end:], reply[end + 1 :])

    def _check_size(self, port: int, request: list[bytes], reply: list[bytes]) -> None:
        """What is too large, but not so large that the connection is closed, is refused with a reason."""
        limit = self._loop._limit(port)
        if not request or len(request[0]) <= limit.max_bytes or request[1:] not in ([], [WANTS_REASON]):
            return
        assert cb.GenericResponse.FromString(reply[0]).error == cb.EXECUTION_ERROR
        reasons = [str(limit.exceeded(len(request[0]))).encode()] if request[1:] else []
        assert reply[1:] == reasons

    def ask(self, port: int, *request: bytes) -> list[bytes]:
        """As clients do; the parts of the reply."""
        tag = b"%d" % next(self._tags)
        socket = self.socket(zmq.DEALER, ports.tcp(self.ip, port))
        socket.send_multipart([tag, b"", *request])
        reply = socket.recv_multipart()
        assert reply[:2] == [tag, b""], f"a reply to nobody: {reply}"
        return reply[2:]

    def told(self, port: int, request: bytes) -> cb.GenericResponse:
        (reply,) = self.ask(port, request)
        return cb.GenericResponse.FromString(reply)

    def check_loop(self) -> None:
        assert self._loop.status(time.monotonic())["loop_alive"] and self._loop.counts["failed"] == 0


class Ingress(SchedulerPorts):
    """The Ingress loop with a lease, one executor and one DAG; nothing answers what it forwards."""

    name = "ingress"

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._ended: list[str] = []
        config = Config(host=ip).replace(
            **{"policy.random_threshold": 0.0, "policy.max_recent_calls": 0, **LIMITS}
        )
        self._loop = IngressLoop(config, on_failure=lambda: self._ended.append("the loop ended"))
        self._loop.start()
        self._renew()
        assert self._loop.synced.wait(WAIT_MS / 1000)

    def _renew(self) -> None:
        now = time.monotonic()
        record = ExecutorRecord(self.ip, 0, False, ("f",), (), True, 0.0, now, 0.0, 1)
        dag = cb.Dag(name="d", functions=[cb.Dag.FunctionReference(name="f")]).SerializeToString()
        update = Update(1, 0, whole=True, executors=(record,), dags={"d": dag}, sent_at=now + 1000.0)
        self._loop.mailbox.put(lambda now: self._loop.apply(update, now))

    def serves(self) -> None:
        self._renew()
        status = internal_pb2.ThreadStatus(ip=self.ip, tid=0, functions=["f"], running=True)
        before = self._loop.counts["statuses"]
        self.push(ports.tcp(self.ip, ports.STATUS), [status.SerializeToString()])
        wait_for(lambda: self._loop.counts["statuses"] > before, "no status was taken in")
        assert self.told(ports.DAG_CALL, cb.DagCall(name="d", output_key="k").SerializeToString()).success
        assert not self._ended
        self.check_loop()

    def close(self) -> None:
        super().close()
        self._loop.stop()


class ExecutorPorts(Target):
    """An executor thread with a key-value store. Whatever comes to one of its ports makes it leave: then
    there is another one in its place."""

    name = "executor"
    layout = ports.CLASSIC
    # So that it leaves once in a while only.
    ports = 4 * (
        layout.pin, layout.unpin, layout.call, layout.schedule, layout.trigger, layout.user_message,
    ) + (layout.depart,)  # fmt: skip

    def __init__(self, ip: str, folder: Path) -> None:
        super().__init__(ip)
        self._bench = Bench(ip, folder)
        self._bench.register("f", lambda library, *arguments: len(arguments))
        self._config = self._bench.config.replace(
            **LIMITS,
            **{
                # What a call refers to and is not there holds up the next one for that long.
                "executor.reference_timeout_s": 0.05,
                "executor.depart_timeout_s": 0.05,
                "executor.depart_linger_s": 0.0,
                # The management node hears of its departure.
                "mgmt": ip,
                "executor.functions_per_executor": 1_000_000,
            },
        )
        self._is_told_to_leave = False
        self._start()

    def _start(self) -> None:
        self._departed = threading.Event()
        self._bench.scheduler.clear()
        self._executor = self._bench.start(config=self._config, on_departed=self._departed.set)

    def hard_bytes(self, port: int) -> int:
        is_small = port in (self.layout.pin, self.layout.unpin, self.layout.depart)
        return MAX_CONTROL_BYTES if is_small else 2 * MAX_MESSAGE_BYTES

    def send(self, port: int, frames: list[bytes]) -> None:
        super().send(port, frames)
        if port == self.layout.depart and len(frames) == 1 and not self.is_cut_off(port, frames):
            self._is_told_to_leave = True

    def serves(self) -> None:
        if self._is_told_to_leave:
            assert self._departed.wait(WAIT_MS / 1000), "it did not depart"
            assert self._bench.scheduler.wait_for("mgmt_depart") == [self.ip.encode()]
            self._bench.statuses(lambda status: not status.running)
            assert not self._executor.status()["running"]
            self._executor.stop()
            self.disconnect()
            self._bench.pusher.close()  # as `disconnect`; it connects anew
            self._is_told_to_leave = False
            self._start()
        assert self._bench.result(self._bench.call("f", 1, 2)) == 2
        assert not self._departed.is_set() and self._executor.status()["running"]

    def close(self) -> None:
        self._bench.__exit__(None, None, None)
        super().close()


class KvsPorts(Target):
    """The key-value server."""

    name = "kvs_server"
    ports = (ports.KVS_ROUTING, ports.KVS_STORAGE)

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._store = Store()
        self._server = KvsServer(ip, self._store, max_message_bytes=MAX_MESSAGE_BYTES)
        self._server.start()
        self._client = KvsClient(ip, ip, timeout_s=10.0)
        self._client.put_bytes("big", dumps("x" * 1000))
        self._numbers = itertools.count()

    def hard_bytes(self, port: int) -> int:
        return MAX_MESSAGE_BYTES

    def serves(self) -> None:
        key = f"served {next(self._numbers)}"
        self._client.put_bytes(key, b"it")
        assert self._client.get_bytes(key) == b"it"
        assert self._server.stats()["failed_batches"] == 0

    def close(self) -> None:
        self._client.close()
        self._server.stop()
        self._store.close()
        super().close()


class KvsClientPorts(Target):
    """The ports where a client of the key-value store takes its answers."""

    name = "kvs_client"

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._store = Store()
        self._server = KvsServer(ip, self._store)
        self._server.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "MAX_ANSWER_BYTES", MAX_MESSAGE_BYTES)
            self._client = KvsClient(ip, ip, timeout_s=10.0)
        self.ports = (
            ports.KVS_CLIENT_RESPONSE + self._client.offset,
            ports.KVS_CLIENT_ADDRESS + self._client.offset,
        )

    def hard_bytes(self, port: int) -> int:
        return MAX_MESSAGE_BYTES

    def serves(self) -> None:
        self._client.put_bytes("k", b"it")
        assert self._client.get_bytes("k") == b"it"

    def close(self) -> None:
        self._client.close()
        self._server.stop()
        self._store.close()
        super().close()


class ResponsePorts(Target):
    """The ports where a client takes direct responses: what comes settles the one call that waits there."""

    name = "responses"
    ports = (0,)

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._limits = pytest.MonkeyPatch()
        self._limits.setattr(responses, "MAX_RESPONSE_BYTES", MAX_MESSAGE_BYTES)
        self._pool = ResponsePool(ip)

    def hard_bytes(self, port: int) -> int:
        return MAX_MESSAGE_BYTES

    def send(self, port: int, frames: list[bytes]) -> None:
        pending = self._pool.lease()
        if self.is_cut_off(port, frames):
            self.send_in_vain(zmq.PUSH, pending.address, frames)
            assert pending.cancel(), "what was too large was taken in"
            return
        with self._context.socket(zmq.PUSH) as socket:
            socket.connect(pending.address)
            socket.linger = WAIT_MS
            socket.send_multipart(frames)
            try:
                raw = pending.wait(WAIT_MS / 1000)
            except BadMessageError:
                return
        try:
            loads(raw)
        except BadMessageError:
            pass

    def serves(self) -> None:
        pending = self._pool.lease()
        with self._context.socket(zmq.PUSH) as socket:
            socket.connect(pending.address)
            socket.send(dumps("it"))
            assert loads(pending.wait(WAIT_MS / 1000)) == "it"

    def close(self) -> None:
        self._pool.close()
        self._limits.undo()
        super().close()


def wait_for(
    holds: Callable[[], bool], otherwise: str, why: Sequence[object] = (), pause_s: float = 0.0005
) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, f"{otherwise} {why[-1:]}"
        time.sleep(pause_s)
