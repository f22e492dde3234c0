"""Who listens where, as the system tells it (proc(5))."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """(address, port) of each TCP socket that these processes listen on."""
    found = set()
    for pid in pids:
        process = psutil.Process(pid)
        connections = getattr(process, "net_connections", None) or process.connections
        for connection in connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found
