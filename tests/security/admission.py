"""Every port of a group that asks for keys: whom it admits, and what becomes of those who come."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from ray_sched.actors import names
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.curve import Keys

CLIENT, EXECUTOR, GROUP, UNKNOWN = "client", "executor", "group", "unknown"
"""Whose key somebody has."""
PATIENCE_S: Final = 30.0
NOT_ADMITTED: Final = 400
"""As the authentication protocol says it (RFC 27)."""

SIGNATURE: Final = b"\xff" + bytes(7) + b"\x01\x7f"
KEYLESS: Final = {
    # RFC 23: the greeting, then the command of a client without security.
    "ZMTP 3.0": SIGNATURE
    + b"\x03\x00"
    + b"NULL".ljust(20, b"\0")
    + bytes(32)
    + b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH",
    # RFC 15 and 13: what knows no security, and ZeroMQ still speaks.
    "ZMTP 2.0": SIGNATURE + b"\x01\x08\x00\x00",
    "ZMTP 1.0": b"\x01\x00",
}
"""What somebody without a key begins with, by its protocol. As bytes: ZeroMQ's own client would give up by
itself where it is asked for a key."""


@dataclass(frozen=True)
class Port:
    """One that a process listens on, by the process's role in the group, or `client`."""

    role: str
    ip: str
    number: int

    def row(self) -> tuple[str, set[str]]:
        """What it is for, and whose keys it admits. Raises LookupError where docs/security.md has no such."""
        for what, numbers, admitted in rows(self.role):
            if self.number in numbers:
                return what, admitted
        raise LookupError(f"{self} is new: who is admitted to it? Say so here and in docs/security.md")

    @property
    def takes_requests(self) -> bool:
        return self.role == names.INGRESS and self.number in ports.REQUEST_PORTS


def rows(role: str) -> Iterator[tuple[str, Collection[int], set[str]]]:
    """The table of docs/security.md: what a process's ports are for, their numbers, and who is admitted."""
    if role == names.INGRESS:
        yield "requests", {*ports.REQUEST_PORTS, ports.CALL_QUEUE}, {CLIENT, GROUP}
        yield "statuses", {ports.STATUS}, {EXECUTOR, GROUP}
        yield "answers to pins, continuations", {ports.PIN_ACCEPT, ports.CONTINUATION}, {EXECUTOR, GROUP}
        yield "updates", {ports.SCHEDULER_UPDATE}, {GROUP}
    if role == names.KVS:
        yield "the store", {ports.KVS_ROUTING, ports.KVS_STORAGE}, {CLIENT, EXECUTOR, GROUP}
    if names.is_executor(role):
        layout, tid = ports.CLASSIC, names.executor_address(role)[1]
        work = (layout.pin, layout.unpin, layout.call, layout.schedule, layout.depart)
        yield "work", {base + tid for base in work}, {GROUP}
        yield "trigger, user messages", {layout.trigger + tid, layout.user_message + tid}, {EXECUTOR, GROUP}
    if role in (names.SCHEDULER, names.POLICY, CLIENT) or names.is_executor(role):
        for what, base in (("values", ports.KVS_CLIENT_RESPONSE), ("addresses", ports.KVS_CLIENT_ADDRESS)):
            yield f"the store's answers: {what}", range(base, base + ports.KVS_CLIENT_OFFSETS), {GROUP}
    if role in (names.SCHEDULER, CLIENT):
        first = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
        yield "direct responses", range(int(first), 1 << 16), {EXECUTOR, GROUP}


def holders_of(folder: Path, client: Path, stranger: Path) -> dict[str, Keys]:
    """Whoever may have a key: from a group's folder, that of one of its clients, and that of a stranger."""
    group, executor = Keys.of_group(str(folder)), Keys.of_executor(str(folder))
    assert group is not None and executor is not None
    return {
        CLIENT: Keys.of_client(client),
        EXECUTOR: executor,
        GROUP: group,
        UNKNOWN: Keys.of_client(stranger),
    }


def theft(port: Port) -> bytes:
    """What would show if it were taken there: a call's result, an executor or a value that nobody made."""
    if port.number == ports.STATUS:
        return internal_pb2.ThreadStatus(ip="127.0.18.66", tid=0, running=True).SerializeToString()
    if port.number == ports.KVS_STORAGE:
        value = anna.LWWValue(timestamp=1, value=b"x").SerializeToString()
        pair = anna.KeyTuple(key="stolen", lattice_type=anna.LWW, payload=value)
        return anna.KeyRequest(type=anna.PUT, tuples=[pair]).SerializeToString()
    return cb.FunctionCall(name="same", response_key="stolen-call").SerializeToString()


def is_admitted(
    context: zmq.Context[zmq.Socket[bytes]], port: Port, own: Keys, server: bytes, message: bytes
) -> bool:
    """Whether a port whose own public key is `server` shakes hands with the holder of a key, who also sends
    it a message, if that is not empty."""
    peer = context.socket(zmq.DEALER if port.takes_requests else zmq.PUSH)
    peer.linger = 0
    ends = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    ends |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    monitor = peer.get_monitor_socket(ends)
    peer.curve_serverkey, peer.curve_publickey, peer.curve_secretkey = server, own.public, own.secret
    peer.connect(ports.tcp(port.ip, port.number))
    if message:
        peer.send_multipart([b"", message] if port.takes_requests else [message])
    assert monitor.poll(PATIENCE_S * 1000), f"{port} neither admits nor refuses"
    end = recv_monitor_message(monitor)
    peer.disable_monitor()
    monitor.close(0)
    peer.close(0)
    if end["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        return True
    assert (end["event"], end["value"]) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, NOT_ADMITTED), port
    return False


def cuts_off(port: Port, protocol: str, message: bytes) -> bool:
    """Whether a port closes the connection of somebody without a key, who sends it a message."""
    assert len(message) < 255, "such a length is one byte"
    frame = bytes([1 + len(message), 0] if protocol == "ZMTP 1.0" else [0, len(message)]) + message
    with socket.create_connection((port.ip, port.number), PATIENCE_S) as peer:
        try:
            peer.sendall(KEYLESS[protocol] + frame)
            while peer.recv(4096):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
    return True


def check(port: Port, holders: Mapping[str, Keys]) -> None:
    """Fails unless a port admits just whom it should, of the holders of keys and of those who have none."""
    _, admits = port.row()
    own = EXECUTOR if names.is_executor(port.role) else CLIENT if port.role == CLIENT else GROUP
    with zmq.Context() as context:
        for holder, key in holders.items():
            admitted = holder in admits
            message = b"" if admitted else theft(port)
            assert is_admitted(context, port, key, holders[own].public, message) == admitted, (port, holder)
    for protocol in KEYLESS:
        assert cuts_off(port, protocol, theft(port)), (port, protocol)


def is_of_zeromq(port: Port) -> bool:
    """Whether who connects is greeted as ZeroMQ does it; Ray's ports begin with a frame of HTTP/2."""
    with socket.create_connection((port.ip, port.number), PATIENCE_S) as peer:
        return peer.recv(1) == SIGNATURE[:1]
