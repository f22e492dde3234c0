"""That nothing of a process is left once it counts as ended."""

from __future__ import annotations

import os
import subprocess
import sys

HOST = "127.0.5.80"
LET_GO_S = 0.3
HALF_GONE = """
import ctypes, os, socket, sys, threading

server = socket.create_server((sys.argv[1], 0))

def linger():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=linger).start()
print(server.getsockname()[1], flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
"""Its first thread exits, and takes its environment along; the socket stays until the other one is let go."""
ENDING = """
import os, socket, subprocess, sys, threading
from ray_sched import processes

half_gone_code, host, mark, let_go_s = sys.argv[1:]
half_gone = subprocess.Popen(
    [sys.executable, "-c", half_gone_code, host],
    env={**os.environ, processes.MARK: mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
port = int(half_gone.stdout.readline())
while processes.marked(mark):
    pass
threading.Timer(float(let_go_s), half_gone.stdin.close).start()
processes.end(mark, 0.0)
socket.create_server((host, port)).close()
"""
"""`end` reaps any child, and so has a process of its own."""


def test_a_process_without_its_environment_that_still_holds_a_port_is_waited_for() -> None:
    arguments = [HALF_GONE, HOST, f"half-gone-{os.getpid()}", str(LET_GO_S)]
    ending = subprocess.run([sys.executable, "-c", ENDING, *arguments], timeout=60, check=False)
    assert ending.returncode == 0
