"""A server that is killed in mid-write has, when it is started again, every write that it acknowledged."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from ray_sched.errors import KvsError, TimedOutError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, SetLattice

SERVER = """
import sys
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store

KvsServer(sys.argv[1], Store(sys.argv[2])).start()
print("ready", flush=True)
sys.stdin.read()
"""
WRITERS = 4


def start(ip: str, path: Path, stack: ExitStack) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, ip, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(server)
    stack.callback(server.kill)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def test_acknowledged_writes_survive_sigkill(ip: str, tmp_path: Path, stack: ExitStack) -> None:
    acknowledged: list[tuple[str, int]] = []
    written = threading.Semaphore(0)

    def write(client: KvsClient, name: str) -> None:
        number = 0
        try:
            while True:
                client.put(name, LWW(number, str(number).encode()))
                acknowledged.append((name, number))
                client.put(f"{name}-set", SetLattice(frozenset({str(number).encode()})))
                acknowledged.append((f"{name}-set", number))
                written.release()
                number += 1
        except (TimedOutError, KvsError):
            pass

    for life in range(3):
        server = start(ip, tmp_path / "store.db", stack)
        with KvsClient(ip, ip, timeout_s=10.0) as client:
            writers = [
                threading.Thread(target=write, args=(client, f"{life}-{number}")) for number in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            for _ in range(100 + 37 * life):
                assert written.acquire(timeout=60)
            server.kill()  # while the writers write
            server.wait(30)
            client.close()
            for writer in writers:
                writer.join(30)

    start(ip, tmp_path / "store.db", stack)
    assert len(acknowledged) > 500
    with KvsClient(ip, ip, timeout_s=10.0) as client:
        found = client.get_many({key for key, _ in acknowledged})
    for key, number in acknowledged:
        lattice = found[key]
        if isinstance(lattice, LWW):
            assert lattice.timestamp >= number
        else:
            assert isinstance(lattice, SetLattice)
            assert str(number).encode() in lattice.values
