"""CURVE on the sockets of a group: who is admitted to which port, and whose key a port has.

A folder holds the keys, as certificates of ZeroMQ's (see `ray_sched.keys`, which makes them):

    group.key  group.key_secret          the scheduler's and the key-value store's pair
    executor.key  executor.key_secret    the executors' pair
    clients/NAME.key                     the public keys of those who may register and call

A client's folder holds `group.key`, `executor.key` and its own `NAME.key_secret`; that of a machine with
executors alone needs no secret of the group's and no clients.

Rules: a port that is bound has its process's own key, and admits by ZeroMQ's authentication (ZAP,
RFC 27) who its kind of message may come from. Whoever connects has to know the port's key: that of a
fixed port follows from its number, and an address for answers names its own at its end
(`tcp://127.0.0.1:6480/<64 hexadecimal digits>`). The management node's protocol has no keys.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from ray_sched.errors import BadMessageError, ConfigError
from ray_sched.wire import ports

log = logging.getLogger(__name__)

GROUP, EXECUTOR = "group", "executor"
"""The names of the two pairs."""
CLIENTS: Final = "clients"
"""The folder of clients' public keys, and the domain of the ports that take requests."""
FROM_GROUP: Final = "from-group"
FROM_EXECUTORS: Final = "from-executors"
"""Executors and the group's own actors."""
FROM_ALL: Final = "from-all"
"""Everybody with a key: the key-value store's ports."""

GROUP_PORTS: Final = frozenset(
    {
        *ports.REQUEST_PORTS,
        *ports.PUSH_PORTS,
        *range(ports.KVS_ROUTING, ports.KVS_ROUTING + ports.KVS_ROUTING_THREADS),
        ports.KVS_STORAGE,
    }
)
_PUSHED_BY: Final = {
    ports.CALL_QUEUE: CLIENTS,
    ports.STATUS: FROM_EXECUTORS,
    ports.PIN_ACCEPT: FROM_EXECUTORS,
    ports.CONTINUATION: FROM_EXECUTORS,
    ports.SCHEDULER_UPDATE: FROM_GROUP,
}


@dataclass(frozen=True)
class Keys:
    """What one process needs; all keys in the text form of certificates (Z85)."""

    public: bytes
    secret: bytes
    """Its own pair: what it shows where it connects, and what the ports have that it binds."""
    group: bytes
    executor: bytes
    clients: str = ""
    """The folder of clients' public keys; it is looked into whenever it has changed."""

    @classmethod
    def of_group(cls, folder: str) -> Keys | None:
        """For the group's own actors; None where no folder is configured. Raises ConfigError."""
        return cls._of(folder, GROUP) if folder else None

    @classmethod
    def of_executor(cls, folder: str) -> Keys | None:
        """For executors; None where no folder is configured. Raises ConfigError."""
        return cls._of(folder, EXECUTOR) if folder else None

    @classmethod
    def of_client(cls, folder: str | os.PathLike[str]) -> Keys:
        """For a client, whose folder has its secret key and the two public ones. Raises ConfigError."""
        mine = [file.stem for file in Path(folder).glob("*.key_secret")]
        if len(mine) != 1:
            raise ConfigError(
                f"{folder}: a client's folder of keys has one file *.key_secret, not {len(mine)}: "
                "make one with: ray-sched keys new NAME"
            )
        return cls._of(folder, mine[0])

    @classmethod
    def _of(cls, folder: str | os.PathLike[str], own: str) -> Keys:
        public, secret = _certificate(Path(folder) / f"{own}.key_secret", secret=True)
        group, executor = (_certificate(Path(folder) / f"{name}.key")[0] for name in (GROUP, EXECUTOR))
        return cls(public, secret, group, executor, str(Path(folder) / CLIENTS))

    def __repr__(self) -> str:
        return f"<keys of {self.public.decode()}>"

    def answers_at(self, address: str) -> str:
        """An address of a port that this process has bound, as those have to be told who answer there."""
        return f"{address}/{z85.decode(self.public).hex()}"

    def connect(self, socket: zmq.Socket[bytes], port: int, named: str = "") -> None:
        """Have the socket, which is to connect to the port, speak CURVE.

        `named` is the key in hexadecimal digits that the address has. Raises BadMessageError where it
        has none and the port's number does not tell whose it is.
        """
        if named:
            server = z85.encode(bytes.fromhex(named))
        elif port in GROUP_PORTS:
            server = self.group
        elif any(low <= port < high for low, high in _EXECUTOR_PORTS):
            server = self.executor
        else:
            raise BadMessageError(f"an address with port {port} has to name its key: whose port is it?")
        socket.curve_serverkey = server
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret

    def bind(self, socket: zmq.Socket[bytes], admits: str) -> None:
        """Have the socket, which is to be bound, admit nobody else; its context needs a `Guard`."""
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        socket.curve_server = True
        socket.zap_domain = admits.encode()


_EXECUTOR_PORTS: Final = [
    (base, base + layout.threads)
    for layout in ports.LAYOUTS.values()
    for base in (
        layout.pin, layout.unpin, layout.call, layout.schedule, layout.trigger, layout.depart,
        layout.user_message,
    )
]  # fmt: skip


def admitted_to(port: int) -> str:
    """Who is admitted to a port of the scheduler."""
    return _PUSHED_BY.get(port, CLIENTS)


class Guard:
    """Admits connections to the bound sockets of one context: ZeroMQ's own authenticator, in its thread.

    To be made before a socket is bound, and closed before the context ends.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> None:
        """Without keys it does nothing."""
        self._authenticator: ThreadAuthenticator | None = None
        if keys is None:
            return
        fixed = {GROUP: keys.group, EXECUTOR: keys.executor}
        self._authenticator = ThreadAuthenticator(context, log=log)
        self._authenticator.start()
        for domain, names, clients in (
            (CLIENTS, (GROUP,), keys.clients),
            (FROM_GROUP, (GROUP,), ""),
            (FROM_EXECUTORS, (GROUP, EXECUTOR), ""),
            (FROM_ALL, (GROUP, EXECUTOR), keys.clients),
        ):
            known = _Known({fixed[name]: True for name in names}, clients)
            self._authenticator.configure_curve_callback(domain, known)

    def close(self) -> None:
        """From one thread at a time."""
        if self._authenticator is not None:
            self._authenticator.stop()


class _Known:
    """Who is admitted to one domain: some fixed keys, and those in a folder that may change."""

    def __init__(self, fixed: Mapping[bytes, bool], folder: str) -> None:
        self._fixed = fixed
        self._folder = folder
        self._read_at = -1
        self._found: Mapping[bytes, bool] = {}

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by the authenticator for each connection that is made."""
        admitted = key in self._fixed or key in self._clients()
        if not admitted:
            log.warning("a connection was refused: its key %s is not admitted to %s", key.decode(), domain)
        return admitted

    def _clients(self) -> Mapping[bytes, bool]:
        if not self._folder:
            return {}
        try:
            changed_at = os.stat(self._folder).st_mtime_ns
            if changed_at != self._read_at:
                self._found = zmq.auth.load_certificates(self._folder)
                self._read_at = changed_at
        except (OSError, ValueError) as error:
            log.warning("the clients' keys stay as they were: %s", error)
        return self._found


def _certificate(file: Path, *, secret: bool = False) -> tuple[bytes, bytes]:
    """The public and the secret key in it; the secret one empty unless it is wanted."""
    try:
        if secret and file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others: chmod 600 {file}")
        public, own = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} holds no key: {error}; make keys with: ray-sched keys new NAME") from None
    if secret and own is None:
        raise ConfigError(f"{file} holds no secret key; make keys with: ray-sched keys new NAME")
    return public, own or b""
