from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import zmq

from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store

_addresses = itertools.cycle(f"127.0.2.{number}" for number in range(1, 100))


@pytest.fixture
def ip() -> str:
    """A loopback address that no other running test uses."""
    return next(_addresses)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(ip: str, stack: ExitStack) -> KvsServer:
    """A running server of an empty store at `ip`."""
    return serve(ip, stack)


@pytest.fixture
def client(server: KvsServer, stack: ExitStack) -> KvsClient:
    return stack.enter_context(KvsClient(server.ip, server.ip, timeout_s=10.0))


def serve(ip: str, stack: ExitStack, store: Store | None = None, **settings: Any) -> KvsServer:
    server = KvsServer(ip, Store() if store is None else store, **settings)
    server.start()
    stack.callback(server.stop)
    return server


class Peer:
    """A program with nothing but ZeroMQ: takes messages on ports of one address, pushes to others."""

    def __init__(self, ip: str, *ports: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pull: dict[int, zmq.Socket[bytes]] = {}
        self._push: dict[str, zmq.Socket[bytes]] = {}
        for port in ports:
            self._pull[port] = self._context.socket(zmq.PULL)
            self._pull[port].bind(f"tcp://{ip}:{port}")

    def push(self, address: str, message: bytes) -> None:
        if address not in self._push:
            self._push[address] = self._context.socket(zmq.PUSH)
            self._push[address].connect(address)
        self._push[address].send(message)

    def pull(self, port: int, timeout_s: float = 20.0) -> bytes:
        if not self._pull[port].poll(int(timeout_s * 1000)):
            raise TimeoutError(f"nothing came to port {port} in {timeout_s} s")
        return self._pull[port].recv()

    def close(self) -> None:
        self._context.destroy(0)


def peer(stack: ExitStack, ip: str, *ports: int) -> Peer:
    made = Peer(ip, *ports)
    stack.callback(made.close)
    return made
