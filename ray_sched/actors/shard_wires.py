"""What connects the ingress that has the ports (the front) with its shards: sockets in the file system.

- Calls: ZeroMQ's own proxy, one for each port that takes calls, in threads of C that need no interpreter.
  It hands each call to the next shard that is connected. All shards know it by one name, so that the way
  back of a call is the same through each of them.
- Statuses: what the front has heard of executors goes to all shards.
- Calls that are passed on: from one shard to the next, where that one may find a free executor.

The sockets lie in the folder for runtime files, and are this user's alone: no key is asked for there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import zmq

from ray_sched.config import Config
from ray_sched.errors import ConfigError
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire import ports
from ray_sched.wire.curve import Guard, Keys, admitted_to
from ray_sched.wire.sockets import DONTWAIT, HIGH_WATER_MARK, batching_context, bind

log = logging.getLogger(__name__)

CALL_PORTS: Final = (ports.FUNCTION_CALL, ports.DAG_CALL)
PROXY_NAME: Final = b"front"
WAITING_CALLS: Final = 1000
"""Calls that may wait for one shard on each side of its connection: with it they are lost."""
RECONNECT_MS: Final = 10
"""Shards come after what connects to them. Until it has found them, the front refuses queued calls, and to
look for a socket in the file system costs next to nothing (ZeroMQ looks ten times less often)."""
MAX_PATH: Final = 107
"""Bytes of a Unix socket's path (unix(7))."""

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


def ipc(config: Config, name: str) -> str:
    """The ZeroMQ address of a socket between processes of the group. Raises ConfigError."""
    path = str(runtime_file(config, f"{name}.ipc"))
    if len(path.encode()) > MAX_PATH:
        raise ConfigError(
            f"executor.runtime_dir: with ingress.shards the path {path} would be longer than the {MAX_PATH} "
            "bytes that a socket's may have; name a shorter folder"
        )
    return f"ipc://{path}"


def statuses_to_shards(context: Context, config: Config) -> Socket:
    """Where the front tells the statuses."""
    return _bound(context, zmq.PUB, ipc(config, "statuses"))


def statuses_from_front(context: Context, config: Config) -> Socket:
    socket = _socket(context, zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(ipc(config, "statuses"))
    return socket


def calls_from_proxy(context: Context, config: Config, port: int) -> Socket:
    """Where a shard gets the calls that came to a port of the group, and answers them."""
    socket = _socket(context, zmq.ROUTER)
    socket.rcvhwm = WAITING_CALLS
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.connect(ipc(config, f"calls-{port}"))
    return socket


def calls_passed_on(context: Context, config: Config, shard: int) -> Socket:
    """Where a shard gets what others pass on to it."""
    return _bound(context, zmq.PULL, ipc(config, f"shard-{shard}"), waiting=WAITING_CALLS)


class Passing:
    """The other end of `calls_passed_on`, for each of some shards, in the order in which they are tried."""

    def __init__(self, context: Context, config: Config, shards: Sequence[int]) -> None:
        self._turn = 0
        self._sockets: list[Socket] = []
        for shard in shards:
            socket = _socket(context, zmq.PUSH)
            socket.sndhwm = WAITING_CALLS
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for one that is not there
            socket.connect(ipc(config, f"shard-{shard}"))
            self._sockets.append(socket)

    def pass_on(self, frames: Sequence[bytes], steps: int = 0) -> bool:
        """To the next one that takes it, behind one byte: how many steps round all shards it has come.

        `steps` is how many it has come so far. False where no shard is left that it has not come to.
        """
        return self._send(frames, self._sockets[: len(self._sockets) - steps], steps + 1)

    def begin(self, frames: Sequence[bytes], shard: int | None = None) -> bool:
        """For the front: to a shard (from 1 on), or to each in turn, as if the call had come there first."""
        if shard is None:
            self._turn = (self._turn + 1) % len(self._sockets)
        first = self._turn if shard is None else shard - 1
        return self._send(frames, self._sockets[first:] + self._sockets[:first], 0)

    def _send(self, frames: Sequence[bytes], sockets: Sequence[Socket], first_step: int) -> bool:
        for step, socket in enumerate(sockets, first_step):
            try:
                socket.send_multipart([bytes([step]), *frames], DONTWAIT)
                return True
            except zmq.Again:
                continue
        return False


class Proxies:
    """The ports that take calls, and their ways to the shards."""

    def __init__(
        self,
        config: Config,
        max_message_bytes: Mapping[int, int],
        holders: str,
        on_failure: Callable[[], None],
    ) -> None:
        """Binds the ports. Raises PortTakenError, ConfigError. `on_failure` is called in a thread."""
        # A context of its own: its end is what ends the proxies.
        self._context = batching_context()
        keys = Keys.of_group(config.security.curve)
        self._guard = Guard(self._context, keys)
        self._on_failure = on_failure
        self._stop_timeout_s = config.threads_stop_timeout_s
        pairs: list[tuple[Socket, Socket]] = []
        try:
            for port in CALL_PORTS:
                # Not ROUTER_MANDATORY: a client that has gone would end the proxy.
                front = bind(
                    self._context,
                    zmq.ROUTER,
                    config.host,
                    port,
                    holders,
                    max_message_bytes=max_message_bytes[port],
                    keys=keys,
                    admits=admitted_to(port),
                )
                back = _bound(
                    self._context, zmq.DEALER, ipc(config, f"calls-{port}"), PROXY_NAME, WAITING_CALLS
                )
                pairs.append((front, back))
        except BaseException:
            self._guard.close()
            self._context.destroy(0)
            raise
        self._threads = [
            threading.Thread(target=self._run, args=pair, name=f"proxy-{port}", daemon=True)
            for port, pair in zip(CALL_PORTS, pairs, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Returns once the ports are free."""
        self._guard.close()
        self._context.term()  # the proxies end with this, and it with their sockets
        for thread in self._threads:
            thread.join(self._stop_timeout_s)

    def _run(self, front: Socket, back: Socket) -> None:
        try:
            zmq.proxy(front, back)
        except zmq.ContextTerminated:
            pass
        except BaseException:
            log.exception("a proxy ended")
            self._on_failure()
        finally:
            front.close(0)
            back.close(0)


def _socket(context: Context, kind: int) -> Socket:
    socket: Socket = context.socket(kind)
    socket.linger = 0
    socket.rcvhwm = socket.sndhwm = HIGH_WATER_MARK
    socket.reconnect_ivl = RECONNECT_MS
    return socket


def _bound(
    context: Context, kind: int, address: str, name: bytes = b"", waiting: int = HIGH_WATER_MARK
) -> Socket:
    socket = _socket(context, kind)
    socket.sndhwm = waiting
    if kind == zmq.PULL:
        socket.rcvhwm = waiting
    if name:
        socket.setsockopt(zmq.ROUTING_ID, name)
    try:
        socket.bind(address)
        # Whoever may write to it may connect (unix(7)): where the folder and the umask let others, anybody.
        os.chmod(address.removeprefix("ipc://"), 0o600)
    except (zmq.ZMQError, OSError) as error:
        socket.close(0)
        raise ConfigError(f"executor.runtime_dir: cannot listen on {address}: {error}") from error
    return socket
