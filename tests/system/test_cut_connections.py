"""A connection between two living processes is cut while a call is on its way."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.group import Group
from ray_sched.client import Client
from tests.system.conftest import CONFIG, eventually

pytestmark = pytest.mark.cluster

WAIT_S = 30.0
PIDFD_GETFD = 438
"""The number of that system call, the same for all kinds of processors that have it."""


@pytest.fixture
def executors(group: Group) -> dict[int, int]:
    """The process of each executor by its thread id."""
    told = {}
    for tid in range(CONFIG.executor.count):
        actor = names.find(group.name, names.executor_role(CONFIG.host, tid))
        told[tid] = ray.get(actor.status.remote(), timeout=WAIT_S)["pid"]
    return told


def connections(pid: int, port: int, group: Group) -> list[int]:
    """The descriptors that a process has for connections of the group's ingress to one of its ports."""
    ingress = ray.get(names.find(group.name, names.INGRESS).status.remote(), timeout=WAIT_S)["pid"]
    ends = {each.laddr for each in psutil.Process(ingress).net_connections("tcp") if each.raddr}
    found = psutil.Process(pid).net_connections("tcp")
    return [each.fd for each in found if each.laddr.port == port and each.raddr in ends]


def shared(pid: int, descriptor: int) -> socket.socket:
    """A connection of another process."""
    process = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)
    if copy < 0:
        pytest.skip(f"this system shares no connection: {os.strerror(ctypes.get_errno())}")
    return socket.socket(fileno=copy)


def is_stopped(pid: int) -> bool:
    """All threads of a process: they go on until one of them has run that hears of the signal."""
    stats = (task / "stat" for task in Path(f"/proc/{pid}/task").iterdir())
    try:
        return all(stat.read_text().rpartition(") ")[2][0] == "T" for stat in stats)
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
        return False


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: all(map(is_stopped, pids)), "the processes stop")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def take_what_arrived(connection: socket.socket) -> bytes:
    taken = b""
    connection.setblocking(False)
    try:
        while part := connection.recv(65536):
            taken += part
    except BlockingIOError:
        pass
    return taken


def test_a_call_that_was_on_its_way_has_the_error_value(
    group: Group, client: Client, executors: dict[int, int]
) -> None:
    identity = client.register(lambda _, x: x, "cut_identity")

    def all_are_connected() -> bool:
        identity(1).get(timeout_s=WAIT_S)
        return all(connections(pid, CONFIG.ports.call + tid, group) for tid, pid in executors.items())

    eventually(all_are_connected, "every executor was sent a call")
    with stopped(list(executors.values())), ExitStack() as stack:
        lost = identity(2)
        ways = [
            stack.enter_context(shared(pid, descriptor))
            for tid, pid in executors.items()
            for descriptor in connections(pid, CONFIG.ports.call + tid, group)
        ]
        taken: list[bytes] = []

        def is_taken() -> bool:
            taken.extend(filter(None, map(take_what_arrived, ways)))
            return any(b"cut_identity" in part for part in taken)

        eventually(is_taken, "the call came to an executor")
        for way in ways:
            way.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ray_sched.ExecutionError, match="lost"):
        lost.get(timeout_s=WAIT_S)
    assert identity(3).get(timeout_s=WAIT_S) == 3
