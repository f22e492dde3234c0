"""Commands as a person runs them, real processes, and what they must not leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from ray_sched.bound_ports import group_ports
from ray_sched.config import Config

RAY_SCHED = [sys.executable, "-m", "ray_sched.cli"]
PATIENCE_S = 90.0


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAY_SCHED, *args], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


class Foreground:
    """A command in the foreground, in a process group of its own, as in a terminal."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0 if sys.version_info >= (3, 11) else None,
            start_new_session=sys.version_info < (3, 11),
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()

    def wait_for(self, words: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: words in "".join(self.lines), PATIENCE_S), self.lines

    def signal(self, number: signal.Signals) -> None:
        """To all processes of the group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


class Up(Foreground):
    """`ray-sched up`."""

    def __init__(self, *args: str) -> None:
        super().__init__(*RAY_SCHED, "up", *args)


def left_behind(state: Path) -> list[str]:
    """Processes that were started with the test's own state folder, and are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("RAY_SCHED_STATE_DIR") == str(state):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_nothing_left(state: Path, host: str) -> None:
    assert left_behind(state) == []
    assert list(state.glob("*.json")) == []
    for port in group_ports(Config(host=host)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
