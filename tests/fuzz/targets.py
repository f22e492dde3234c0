"""What is fuzzed: each a part of the system with its real sockets, and how to see that it still serves."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zmq

from ray_sched.actors.ingress_loop import IngressLoop
from ray_sched.config import Config
from ray_sched.core.executor import ExecutorRecord
from ray_sched.core.replication import Update
from ray_sched.errors import BadMessageError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.responses import ResponsePool
from ray_sched.values import dumps, loads
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from tests.executor.bench import Bench

WAIT_MS: Final = 20_000


class Target:
    """One part, and the ports that anybody can send to."""

    name: str
    ports: Sequence[int] = ()

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._faults = _Faults()

    def send(self, port: int, frames: list[bytes]) -> None:
        self.push(ports.tcp(self.ip, port), frames)

    def check(self) -> None:
        """Raise AssertionError where it does not serve any more, or something went wrong inside."""
        self.serves()
        assert not self._faults.seen, self._faults.seen

    def serves(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._context.destroy(0)
        self._faults.close()

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

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []
        logging.getLogger("ray_sched").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter("%(message)s").format(record)[-3000:])

    def close(self) -> None:
        logging.getLogger("ray_sched").removeHandler(self)
        super().close()


class Ingress(Target):
    """The Ingress loop with a lease, one executor and one DAG; nothing answers what it forwards."""

    name = "ingress"
    ports = ports.REQUEST_PORTS + ports.PUSH_PORTS

    def __init__(self, ip: str) -> None:
        super().__init__(ip)
        self._ended: list[str] = []
        config = Config(host=ip).replace(**{"policy.random_threshold": 0.0, "policy.max_recent_calls": 0})
        self._loop = IngressLoop(config, on_failure=lambda: self._ended.append("the loop ended"))
        self._loop.start()
        self._renew()
        assert self._loop.synced.wait(WAIT_MS / 1000)
        self._tags = itertools.count(1)

    def _renew(self) -> None:
        now = time.monotonic()
        record = ExecutorRecord(self.ip, 0, False, ("f",), (), True, 0.0, now, 0.0, 1)
        dag = cb.Dag(name="d", functions=[cb.Dag.FunctionReference(name="f")]).SerializeToString()
        update = Update(1, 0, whole=True, executors=(record,), dags={"d": dag}, sent_at=now + 1000.0)
        self._loop.mailbox.put(lambda now: self._loop.apply(update, now))

    def send(self, port: int, frames: list[bytes]) -> None:
        address = ports.tcp(self.ip, port)
        if port in ports.PUSH_PORTS:
            before = self._loop.counts[f"dropped_port_{port}"]
            self.push(address, frames)
            self.push(address, [b"", b""])  # taken after it, and counted
            wait_for(lambda: self._loop.counts[f"dropped_port_{port}"] > before, f"port {port} was not read")
            return
        # What a REQ socket sends is such a frame of its own, an empty one, and one with the request.
        tag = b"%d" % next(self._tags)
        socket = self.socket(zmq.DEALER, address)
        socket.send_multipart([tag, *frames])
        answered = b"" in frames
        socket.send_multipart([b"end of " + tag, b"", b"", b""])
        wanted = {tag, b"end of " + tag} if answered else {b"end of " + tag}
        while wanted:
            reply = socket.recv_multipart()
            assert reply[0] in wanted, f"a second reply, or one to nobody: {reply}"
            wanted.discard(reply[0])
            if reply[0] == tag:
                assert reply[: frames.index(b"") + 2] == [tag, *frames[: frames.index(b"") + 1]]

    def serves(self) -> None:
        self._renew()
        status = internal_pb2.ThreadStatus(ip=self.ip, tid=0, functions=["f"], running=True)
        before = self._loop.counts["statuses"]
        self.push(ports.tcp(self.ip, ports.STATUS), [status.SerializeToString()])
        wait_for(lambda: self._loop.counts["statuses"] > before, "no status was taken in")
        socket = self.socket(zmq.DEALER, ports.tcp(self.ip, ports.DAG_CALL))
        socket.send_multipart([b"served", b"", cb.DagCall(name="d", output_key="k").SerializeToString()])
        tag, _, reply = socket.recv_multipart()
        assert tag == b"served" and cb.GenericResponse.FromString(reply).success
        assert not self._ended and self._loop.counts["failed"] == 0

    def close(self) -> None:
        super().close()
        self._loop.stop()


class ExecutorPorts(Target):
    """An executor thread with a key-value store; the port that makes it leave is left out."""

    name = "executor"
    layout = ports.CLASSIC
    ports = (
        layout.pin, layout.unpin, layout.call, layout.schedule, layout.trigger, layout.user_message,
    )  # fmt: skip

    def __init__(self, ip: str, folder: Path) -> None:
        super().__init__(ip)
        self._bench = Bench(ip, folder)
        self._bench.register("f", lambda library, *arguments: len(arguments))
        # What a call refers to and is not there holds up the next one for that long.
        config = self._bench.config.replace(**{"executor.reference_timeout_s": 0.05})
        self._executor = self._bench.start(config=config)

    def serves(self) -> None:
        assert self._bench.result(self._bench.call("f", 1, 2)) == 2
        assert self._executor.status()["running"]

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
        self._server = KvsServer(ip, self._store)
        self._server.start()
        self._client = KvsClient(ip, ip, timeout_s=10.0)
        self._client.put_bytes("big", dumps("x" * 1000))
        self._numbers = itertools.count()

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
        self._client = KvsClient(ip, ip, timeout_s=10.0)
        self.ports = (
            ports.KVS_CLIENT_RESPONSE + self._client.offset,
            ports.KVS_CLIENT_ADDRESS + self._client.offset,
        )

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
        self._pool = ResponsePool(ip)

    def send(self, port: int, frames: list[bytes]) -> None:
        pending = self._pool.lease()
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
        super().close()


def wait_for(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.0005)
