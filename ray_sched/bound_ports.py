"""Which ports a group binds, whether they are free, and who holds one that is not.

Asked before anything is started, so that a clash is told within a second instead of by an actor's death.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from ray_sched.config import Config
from ray_sched.errors import ConfigError, PortTakenError
from ray_sched.wire import ports

_LISTEN = "0A"


def group_ports(config: Config) -> dict[int, str]:
    """The ports that the group binds on `config.host`, each with what it is for."""
    bound = {
        ports.CONNECT: "connect",
        ports.FUNCTION_CREATE: "function create",
        ports.FUNCTION_CALL: "function call",
        ports.LIST: "list",
        ports.DAG_CREATE: "DAG create",
        ports.DAG_CALL: "DAG call",
        ports.DAG_DELETE: "DAG delete",
        ports.CALL_QUEUE: "call queue",
        ports.STATUS: "status",
        ports.SCHEDULER_UPDATE: "scheduler update",
        ports.PIN_ACCEPT: "pin accept",
        ports.CONTINUATION: "continuation",
    }
    if config.kvs.host == "embedded":
        bound |= {ports.KVS_ROUTING: "KVS routing", ports.KVS_STORAGE: "KVS storage"}
    layout = config.ports
    kinds = {
        layout.pin: "pin",
        layout.unpin: "unpin",
        layout.call: "call",
        layout.schedule: "DAG queue",
        layout.trigger: "DAG trigger",
        layout.depart: "depart",
        layout.user_message: "user messages",
    }
    for tid in range(config.executor.count):
        bound |= {base + tid: f"executor {tid}'s {kind}" for base, kind in kinds.items()}
    return bound


def check_free(config: Config) -> None:
    """Says so when the group could not bind one of its ports.

    Only on this machine: an address that another node of a given Ray cluster has is left to the actors.

    Raises:
        PortTakenError: one is taken; names the port, what it is for, and who holds it.
        ConfigError: the host is no address of this machine.
    """
    for port, purpose in group_ports(config).items():
        with socket.socket() as probe:
            # As ZeroMQ binds: connections that are still closing do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    if config.ray_address:
                        return
                    raise ConfigError(
                        f"host = {config.host!r} is not allowed; it must be an address of this machine"
                    ) from None
                if error.errno != errno.EADDRINUSE:
                    raise PortTakenError(
                        f"port {port} ({purpose}) on {config.host}: {error.strerror}"
                    ) from None
                raise PortTakenError(
                    f"port {port} ({purpose}) on {config.host} is taken by {holder(config.host, port)}; "
                    "stop that, or choose another address with --host"
                ) from None


def holder(host: str, port: int) -> str:
    """Who listens there, in words: the process's id and command line where the system shows them."""
    inodes = _listening_inodes(host, port)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and inodes & _socket_inodes(entry):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"process {entry.name} ({command[:100]})"
    return "another user's process (a scheduler group, or a Cloudburst scheduler, executor or Anna server)"


def _listening_inodes(host: str, port: int) -> set[str]:
    """The inodes of sockets that listen on the port, at this address or at all (/proc/net/tcp, proc(5))."""
    v4 = socket.inet_aton(host)[::-1].hex().upper()
    wanted = {f"{v4}:{port:04X}", f"{'0' * 8}:{port:04X}"}
    wanted6 = {f"{'0' * 16}FFFF0000{v4}:{port:04X}", f"{'0' * 32}:{port:04X}"}
    inodes = set()
    for table, addresses in (("/proc/net/tcp", wanted), ("/proc/net/tcp6", wanted6)):
        if not os.path.exists(table):
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] in addresses and fields[3] == _LISTEN:
                inodes.add(fields[9])
    return inodes


def _socket_inodes(process: Path) -> set[str]:
    inodes = set()
    try:
        for descriptor in (process / "fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except OSError:
        # It ended meanwhile, or belongs to somebody else.
        pass
    return inodes
