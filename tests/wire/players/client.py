"""A legacy client: one REQ socket for each of the scheduler's seven request ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import zmq

from . import messages as m
from . import ports
from .protobuf import Record, decode, encode


class NoReplyError(AssertionError):
    """A request got no reply in time: the server must answer every one."""


class LegacyClient:
    """Speaks as the legacy Python client does. Belongs to one thread; `timeout_s` holds for each reply.

    `pickled` values are the caller's business: arguments are whole `Value` records here.
    """

    def __init__(self, scheduler_ip: str, *, timeout_s: float = 15.0) -> None:
        self._ip = scheduler_ip
        self._timeout_s = timeout_s
        self._sockets: dict[int, zmq.SyncSocket] = {}

    def __enter__(self) -> LegacyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> str:
        return self.request(ports.CONNECT, b"").decode()

    def create_function(self, name: str, body: bytes) -> Record:
        return self._generic(ports.FUNCTION_CREATE, encode(m.FUNCTION, {"name": name, "body": body}))

    def call(self, name: str, arguments: Sequence[Mapping[str, Any]] = (), **fields: Any) -> Record:
        call = {"name": name, "arguments": {"values": arguments}, **fields}
        return self._generic(ports.FUNCTION_CALL, encode(m.FUNCTION_CALL, call))

    def list(self, prefix: str = "") -> list[str]:
        keys: list[str] = decode(m.STRING_SET, self.request(ports.LIST, prefix.encode()))["keys"]
        return keys

    def create_dag(
        self,
        name: str,
        functions: Sequence[str | Mapping[str, Any]],
        links: Sequence[tuple[str, str]] = (),
        colocated: Sequence[str] = (),
    ) -> Record:
        return self._generic(ports.DAG_CREATE, encode(m.DAG, dag(name, functions, links, colocated)))

    def call_dag(
        self, name: str, arguments: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, **fields: Any
    ) -> Record:
        by_function = {function: {"values": values} for function, values in (arguments or {}).items()}
        call = {"name": name, "function_args": by_function, **fields}
        return self._generic(ports.DAG_CALL, encode(m.DAG_CALL, call))

    def delete_dag(self, name: str) -> Record:
        return self._generic(ports.DAG_DELETE, name.encode())

    def request(self, port: int, raw: bytes) -> bytes:
        """The reply to these bytes. Raises `NoReplyError`; the next request then has a new socket."""
        self.send(port, raw)
        return self.receive(port)

    def send(self, port: int, raw: bytes) -> None:
        """The first half of a request, whose reply `receive` gives."""
        socket = self._sockets.get(port)
        if socket is None:
            socket = zmq.Context.instance().socket(zmq.REQ)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(ports.tcp(self._ip, port))
            self._sockets[port] = socket
        socket.send(raw)

    def has_reply(self, port: int) -> bool:
        """Whether the reply to what was sent is here already."""
        return bool(self._sockets[port].poll(0))

    def receive(self, port: int) -> bytes:
        socket = self._sockets[port]
        if not socket.poll(int(self._timeout_s * 1000)):
            del self._sockets[port]
            socket.close()
            raise NoReplyError(f"no reply from {ports.tcp(self._ip, port)} within {self._timeout_s} s")
        parts = socket.recv_multipart()
        assert len(parts) == 1, f"a reply of {len(parts)} parts from port {port}: legacy replies have one"
        return parts[0]

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()

    def _generic(self, port: int, raw: bytes) -> Record:
        return decode(m.GENERIC_RESPONSE, self.request(port, raw))


def dag(
    name: str,
    functions: Sequence[str | Mapping[str, Any]],
    links: Sequence[tuple[str, str]] = (),
    colocated: Sequence[str] = (),
) -> dict[str, Any]:
    """A `Dag`'s fields; a function is its name, or the fields of its reference."""
    references = [{"name": function} if isinstance(function, str) else function for function in functions]
    connections = [{"source": source, "sink": sink} for source, sink in links]
    return {"name": name, "functions": references, "connections": connections, "colocated": colocated}
